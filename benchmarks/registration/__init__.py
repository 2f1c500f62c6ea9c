"""The registration benchmark: methods, data sets, the runner that measures one on the other, tables and figures."""

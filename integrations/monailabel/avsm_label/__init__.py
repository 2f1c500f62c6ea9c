"""A MONAI Label app that serves the AVSM bundle: registration, label propagation, training, choice of the next image.

Who imports whom, only downwards: ``server`` (HTTP) → ``app`` → ``registration``, ``propagation``, ``training``,
``strategy``, ``batch`` → ``similarity`` → ``engine`` (the bundle) → ``studies`` (files) → ``labels``, ``parameters``,
``errors``. The bundle is imported, as ``scripts``; it knows nothing of this folder.
"""

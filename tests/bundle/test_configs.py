"""The bundle as MONAI's tools see it: properties, references, network in and out, TorchScript."""

import ast
import inspect
import json
import re
import zipfile
from pydoc import locate

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, verify_net_in_out

import tiny_bundle as tiny
from scripts.synthetic.phantom import write_phantom_pair

META = str(tiny.CONFIGS / "metadata.json")
WORKFLOWS = {"train": "train", "evaluate": "infer", "inference": "infer"}
OVERRIDES = ("hippocampus", "hippocampus_labels", "oai", "phantom")
BEFORE = {"hippocampus_labels": ["hippocampus"]}  # what an override comes after
RECIPES = ("general", "knee")  # of training alone, on data sets of their own
# What the metadata schema of 2024-07-25 requires.
REQUIRED = (
    "schema",
    "version",
    "monai_version",
    "pytorch_version",
    "numpy_version",
    "required_packages_version",
    "task",
    "description",
    "authors",
    "copyright",
    "network_data_format",
)


def read(name):
    return json.loads((tiny.CONFIGS / f"{name}.json").read_text())


def leaves(value, place=""):
    """All (place, value) of a config that are neither dict nor list."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, f"{place}#{key}" if place else str(key))
    else:
        yield place, value


def expressions():
    for path in sorted(tiny.CONFIGS.glob("*.json")):
        for place, value in leaves(json.loads(path.read_text())):
            if isinstance(value, str) and value.startswith("$"):
                yield pytest.param(value[1:], id=f"{path.stem}-{place}")


def files_of(name, override):
    """A workflow's config file and those of an override."""
    return [str(tiny.CONFIGS / f"{file}.json") for file in (name, *BEFORE.get(override, ()), override) if file]


def parser_of(files, **settings):
    """A parser of config files, changed by settings."""
    parser = ConfigParser()
    parser.read_config(files)
    parser.update(settings)
    return parser


def small(tmp_path, override):
    """Settings under which a shipped config, of whatever data set, is built in a moment and without its data."""
    sizes = {"grid": tiny.GRID, "threads": 1, **tiny.NETWORK}
    network = parser_of(files_of("train", override), **sizes).get_parsed_content("network_def")
    torch.save(network.state_dict(), tmp_path / "model.pt")
    counts = {"train_pairs": 2, "epoch_pairs": 2, "val_pairs": 1, "pair_count": 1}
    folders = {"bundle_root": str(tiny.BUNDLE), "output_dir": str(tmp_path / "out")}
    return {**sizes, **counts, **folders, "ckpt_path": str(tmp_path / "model.pt")}


@pytest.mark.parametrize("override", [None, *OVERRIDES])
@pytest.mark.parametrize("name", WORKFLOWS)
def test_check_properties(tmp_path, name, override):
    files = files_of(name, override)
    settings = small(tmp_path, override)
    if name == "inference":
        # One pair of files; a list of pairs is there for the other two.
        folder = write_phantom_pair(tmp_path / "pair", shape=tiny.GRID).parent / "imagesTr"
        settings.update(zip(("fixed", "moving"), map(str, sorted(folder.iterdir())), strict=True))
    workflow = ConfigWorkflow(files, META, logging_file=False, workflow_type=WORKFLOWS[name], **settings)
    workflow.initialize()
    assert workflow.check_properties() == []
    # What MONAI only looks up when asked is asked for here.
    values = {key: getattr(workflow, key) for key in workflow.properties}
    assert values["version"] == read("metadata")["version"]
    if name == "train":
        assert values["max_epochs"] == workflow.parser.get_parsed_content("curriculum").total_epochs
        assert values["evaluator"] is not None and values["val_interval"] == workflow.parser.get("val_interval")
    else:
        # An override that comes after the configs of training fits evaluation and inference, too.
        weights = torch.load(settings["ckpt_path"], weights_only=True)
        assert tiny.equal_weights(values["network_def"].state_dict(), weights)
        half = override in ("oai", "phantom")
        assert values["network_def"].momentum_net.stem == ("space_to_depth" if half else "quarter")
        if override is None:
            assert values["network_def"].parameter_counts() == tiny.tiny_network().parameter_counts()
        assert values["evaluator"].network is workflow.parser.get_parsed_content("network")


@pytest.mark.parametrize("name", WORKFLOWS)
@pytest.mark.parametrize("run_id", ["initialize", "run", "finalize"])
def test_zoo_run_ids(name, run_id):
    assert isinstance(read(name)[run_id], list)


@pytest.mark.parametrize(
    ("name", "alias"), [("train", "training"), ("evaluate", "evaluating"), ("inference", "inference")]
)
def test_alias_of_run(name, alias):
    assert read(name)[alias] == "%run"


@pytest.mark.parametrize("key", ["stds", "std_weights", "orientation", "affine_steps", "vsvf_steps", "vsvf_factors"])
def test_shared_settings_are_equal(key):
    values = []
    for name in WORKFLOWS:
        parser = ConfigParser()
        parser.read_config(str(tiny.CONFIGS / f"{name}.json"))
        values.append(parser.get_parsed_content(key))
    assert values[0] == values[1] == values[2]


def test_steps_are_those_of_the_last_phase():
    """What `training` by train.json leaves behind is registered with as it was validated."""
    last = read("train")["phases"][-1]
    for key in ("affine_steps", "vsvf_steps"):
        assert last.get(f"validation_{key}", last[key]) == read("inference")[key]


@pytest.mark.parametrize("key", ["grid", "labels", "sampling"])
def test_settings_of_the_network_grid_are_equal(key):
    """Training and evaluation share a protocol; inference goes from the files' own grids and back."""
    assert read("train")[key] == read("evaluate")[key]


def test_network_and_preprocessing_are_equal():
    def parsed(name):
        config = read(name)
        parser = ConfigParser(config)
        network = {key: parser.get(key, value) for key, value in config["network_def"].items()}
        for key in ("affine_steps", "vsvf_steps", "vsvf_factors"):
            network[key] = parser[network[key][1:]] if str(network[key]).startswith("@") else network[key]
        return network, (config.get("train") or config)["preprocessing"]

    train, evaluate, inference = (parsed(name) for name in WORKFLOWS)
    assert train == evaluate
    assert inference[0] == train[0]
    # Intensities come to the network as it was trained.
    (scale,) = (t for t in train[1]["transforms"] if isinstance(t, dict) and "Percentiles" in t["_target_"])
    (sampling,) = (t for t in inference[1]["transforms"] if "SampleOn" in t["_target_"])
    assert (sampling["lower"], sampling["upper"]) == (scale["lower"], scale["upper"])


@pytest.mark.parametrize("override", OVERRIDES)
def test_overrides_override_something(override):
    known = {**read("inference"), **read("train"), **read("evaluate")}
    for key, value in read(override).items():
        *place, last = key.split("#")
        parent = known
        for part in place:
            parent = parent[part]
        if last not in parent:
            # What a config leaves to the default of what it names.
            assert last in inspect.signature(locate(parent["_target_"])).parameters, key
            continue
        expression = isinstance(value, str) and value.startswith("$")
        assert expression or isinstance(value, type(parent[last])) or parent[last] is None, key


@pytest.mark.parametrize("override", [*OVERRIDES, *RECIPES])
def test_phases_of_a_recipe_have_what_they_train(override):
    """The network of a recipe as it is, on a small grid: each of its phases' objectives gets what it asks for."""
    parser = parser_of(files_of("train", override))
    network, labels = parser.get_parsed_content("network_def"), parser.get("labels")
    curriculum = parser.get_parsed_content("curriculum")
    moving, fixed = torch.rand(2, 2, 1, 16, 16, 24, generator=torch.Generator().manual_seed(0))
    label = torch.randint(0, 1 + len(labels), fixed.shape, generator=torch.Generator().manual_seed(1))
    for phase in curriculum.phases:
        objective = parser.get_parsed_content(f"{phase.stage.removesuffix('s')}_objective")
        with torch.no_grad():
            registration = network.register(moving, fixed, min(1, phase.affine_steps), min(1, phase.vsvf_steps))
            parts = objective(registration, fixed, 0, label, label)
        assert parts["loss"].isfinite(), phase.name
        wanted = phase.stage == "features" or objective.label_weight > 0
        assert ("label_dice" in parts) is wanted
    assert ("features" in {phase.stage for phase in curriculum.phases}) is (registration.fixed_seen.shape[1] > 1)
    assert registration.fixed_seen.shape[1] in (1, 1 + len(labels))


@pytest.mark.parametrize("name", sorted(path.stem for path in (tiny.BUNDLE / "models").glob("*.json")))
def test_model_is_what_its_recipe_trains(name):
    model = parser_of([str(tiny.CONFIGS / "inference.json"), str(tiny.BUNDLE / "models" / f"{name}.json")])
    recipe = parser_of(files_of("train", name))
    networks = [parser.get_parsed_content("network_def").state_dict() for parser in (model, recipe)]
    assert {k: v.shape for k, v in networks[0].items()} == {k: v.shape for k, v in networks[1].items()}
    defined = [parser.get_parsed_content("network_def") for parser in (model, recipe)]
    for part, setting in (
        ("affine_net", "composition"),
        ("affine_net", "newton_window"),
        ("momentum_net", "force_windows"),
        ("momentum_net", "newton_windows"),
        ("momentum_net", "only_forces"),
        ("momentum_net", "membership_force"),
    ):
        values = [getattr(getattr(network, part), setting) for network in defined]
        assert values[0] == values[1], setting
    for key in ("stds", "std_weights", "vsvf_factors"):
        assert model.get(key) == recipe.get(key), key
    # The general network's grid, which is the default, is chosen by the field of view of whatever it is given.
    assert model.get("grid") == (None if name == "general" else recipe.get("grid"))
    # Affine steps are those of the last phase's validation.
    last = recipe.get("phases")[-1]
    assert model.get("affine_steps") == last.get("validation_affine_steps", last["affine_steps"])


@pytest.mark.parametrize("key", REQUIRED)
def test_metadata_has_what_the_schema_requires(key):
    assert read("metadata").get(key), key


def test_metadata_describes_the_network():
    meta = read("metadata")
    assert meta["version"] in meta["changelog"]
    assert meta["schema"].endswith("meta_schema_20240725.json")
    tensors = [*meta["network_data_format"]["inputs"].values(), *meta["network_data_format"]["outputs"].values()]
    for tensor in tensors:
        assert {"type", "format", "num_channels", "spatial_shape", "dtype", "value_range"} <= tensor.keys()
        assert sorted(map(int, tensor["channel_def"])) == list(range(tensor["num_channels"]))


@pytest.mark.parametrize("name", ["evaluate", "inference"])
@pytest.mark.parametrize("n", [1, 2])
def test_verify_net_in_out(name, n):
    verify_net_in_out("network_def", META, str(tiny.CONFIGS / f"{name}.json"), device="cpu", n=n)


def test_torchscript_export(tmp_path):
    weights = tiny.save_weights(tmp_path / "model.pt")
    ckpt_export(
        "network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(weights),
        meta_file=META,
        config_file=str(tiny.CONFIGS / "inference.json"),
        affine_steps=2,
        vsvf_steps=2,
        **tiny.NETWORK,
    )
    extra = {"inference.json": "", "metadata.json": ""}
    scripted = torch.jit.load(str(tmp_path / "model.ts"), _extra_files=extra)
    assert json.loads(extra["metadata.json"])["version"] == read("metadata")["version"]
    assert json.loads(extra["inference.json"])["network_def"]["_target_"] == "scripts.networks.AVSM"
    with zipfile.ZipFile(tmp_path / "model.ts") as archive:
        names = {re.sub("^[^/]*/", "", name) for name in archive.namelist()}
    assert {"extra/inference.json", "extra/metadata.json"} <= names

    network = tiny.tiny_network()
    for shape in ((16, 32, 16), (21, 17, 24)):
        image = torch.rand(2, 2, *shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = network(image)
            torch.testing.assert_close(scripted(image), expected, rtol=0, atol=1e-5)
        assert (expected[:, :1] - image[:, :1]).abs().max() > 0.01, "the weights must move something"


@pytest.mark.parametrize("expression", expressions())
def test_expressions_are_no_programs(expression):
    assert len(expression) < 120
    code = re.sub("@([A-Za-z_])", r"\1", expression).replace("#", ".").replace("::", ".")
    forbidden = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.NamedExpr)
    assert not [node for node in ast.walk(ast.parse(code)) if isinstance(node, forbidden)]


@pytest.mark.parametrize("name", [*WORKFLOWS, *OVERRIDES, *RECIPES, "quarter", "tracking_mlflow", "metadata"])
def test_configs_name_no_machine(name):
    text = (tiny.CONFIGS / f"{name}.json").read_text()
    assert not re.search(r'"/|~/|[A-Z]:\\\\', text)

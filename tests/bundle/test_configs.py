"""The bundle as MONAI's tools see it: properties, references, network in and out, TorchScript."""

import ast
import inspect
import json
from pydoc import locate

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, verify_net_in_out

import tiny_bundle as tiny
from scripts.settings import SETTINGS, default
from scripts.synthetic.phantom import write_phantom_pair

META = str(tiny.CONFIGS / "metadata.json")
WORKFLOWS = {"train": "train", "evaluate": "infer", "inference": "infer"}
OVERRIDES = ("hippocampus_labels", "oai")
RECIPES = ("general",)  # of training alone, on data sets of its own


def read(name):
    return json.loads((tiny.CONFIGS / f"{name}.json").read_text())


def leaves(value, place=""):
    """All (place, value) of a config that are neither dict nor list."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, f"{place}#{key}" if place else str(key))
    else:
        yield place, value


def files_of(name, override):
    """A workflow's config file, its network's, and those of an override."""
    overrides = [override] if override else []
    model = read(override).get("model", "general") if override else "general"
    files = [tiny.CONFIGS / f"{file}.json" for file in (name, *overrides)]
    return [str(path) for path in (files[0], tiny.MODELS / f"{model}.json", *files[1:])]


def parser_of(files, **settings):
    """A parser of config files, changed by settings."""
    parser = ConfigParser()
    parser.read_config(files)
    parser.update({"bundle_root": str(tiny.BUNDLE), **settings})
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
        settings["preset"] = "fast"
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
        stem = getattr(values["network_def"].momentum_net, "stem", None)
        assert stem == {"oai": "space_to_depth", None: "quarter"}.get(override)
        if override is None:
            shapes = [[p.shape for p in net.parameters()] for net in (values["network_def"], tiny.tiny_network())]
            assert shapes[0] == shapes[1]
        assert values["evaluator"].network is workflow.parser.get_parsed_content("network")


def test_steps_are_those_of_the_last_phase():
    """What `training` by train.json leaves behind is registered with as it was validated."""
    last, network = read("train")["phases"][-1], json.loads((tiny.MODELS / "general.json").read_text())
    for key in ("affine_steps", "vsvf_steps"):
        assert last.get(f"validation_{key}", last[key]) == network[key]


# What every workflow says of itself, and a config must be able to say alone.
PREAMBLE = {"bundle_root", "model", "network_file", "threads", "seed", "dataset_dir", "amp", "pair_mode", "orientation"}


def test_no_setting_is_written_twice():
    """A setting of a network stands in its file alone, a default of the command in the configs alone."""
    networks = [json.loads(path.read_text()) for path in tiny.MODELS.glob("*.json")]
    of_networks = {key for network in networks for key in network} | {"stds", "weights", "vsvf_factors", "channels"}
    for path in tiny.CONFIGS.glob("*.json"):
        for place, value in leaves(json.loads(path.read_text())):
            key = place.split("#")[-1]
            reads = isinstance(value, str) and value[:1] in ("$", "@", "%")
            if place.count("#") == 0 and key in of_networks - {"grid"}:
                assert reads or value is None, f"{path.stem}: {place} belongs to models/*.json"
    literal = {
        name: {
            k: v for k, v in read(name).items() if k not in PREAMBLE and isinstance(v, int | float) and v is not None
        }
        for name in WORKFLOWS
    }
    for first, second in (("train", "evaluate"), ("train", "inference"), ("evaluate", "inference")):
        twice = literal[first].keys() & literal[second].keys()
        assert not {key for key in twice if not isinstance(literal[first][key], bool)}, (first, second)
    for name in ("settings.py", "cli/register.py", "api.py"):
        tree = ast.parse((tiny.BUNDLE / "scripts" / name).read_text())
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            assert not [word for word in call.keywords if word.arg == "default"], f"{name}: a default of its own"


USES = {False: {}, True: {"preset": "fast"}}  # whether a setting is a network's


def test_the_command_shows_the_defaults_of_the_configs():
    parsers = {use: parser_of([str(tiny.CONFIGS / "inference.json")], **use_of) for use, use_of in USES.items()}
    for setting in SETTINGS:
        if setting.name not in ("device", "weights", "grid_voxels"):
            found = parsers[setting.network].get_parsed_content(setting.id)
            assert default(setting.name) == (found if found != "" else None), setting.name


def test_preprocessing_is_equal():
    train, evaluate = read("train")["train"]["preprocessing"], read("evaluate")["preprocessing"]
    assert train == evaluate
    # Intensities come to the network as it was trained.
    (scale,) = (t for t in train["transforms"] if isinstance(t, dict) and "Percentiles" in t["_target_"])
    sampling = read("inference")["sampling"]
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
        worked_out = (isinstance(value, str) and value.startswith("$")) or (
            isinstance(value, dict) and "_target_" in value
        )
        assert worked_out or isinstance(value, type(parent[last])) or parent[last] is None, key


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
    assert ("features" in {phase.stage for phase in curriculum.phases}) is (registration.classes is not None)
    assert registration.classes is None or registration.classes.shape[1] == len(labels)


@pytest.mark.parametrize("override", [*OVERRIDES, *RECIPES])
def test_a_recipe_trains_the_network_of_its_file(override):
    recipe = parser_of(files_of("train", override))
    model = recipe.get("model")
    last = recipe.get("phases")[-1]
    network = json.loads((tiny.MODELS / f"{model}.json").read_text())
    # Affine steps are those of the last phase's validation.
    assert network["affine_steps"] == last.get("validation_affine_steps", last["affine_steps"])
    alone = parser_of([str(tiny.CONFIGS / "train.json")], model=model).get_parsed_content("network_def")
    built = recipe.get_parsed_content("network_def")
    assert {k: v.shape for k, v in alone.state_dict().items()} == {k: v.shape for k, v in built.state_dict().items()}


def test_metadata_describes_the_network():
    meta = read("metadata")
    assert meta["version"] in meta["changelog"] and meta["schema"].endswith("meta_schema_20240725.json")
    tensors = [*meta["network_data_format"]["inputs"].values(), *meta["network_data_format"]["outputs"].values()]
    for tensor in tensors:
        assert {"type", "format", "num_channels", "spatial_shape", "dtype", "value_range"} <= tensor.keys()
        assert sorted(map(int, tensor["channel_def"])) == list(range(tensor["num_channels"]))


@pytest.mark.parametrize("name", ["evaluate", "inference"])
@pytest.mark.parametrize("n", [1, 2])
def test_verify_net_in_out(name, n):
    verify_net_in_out(
        "network_def", META, str(tiny.CONFIGS / f"{name}.json"), device="cpu", n=n, bundle_root=str(tiny.BUNDLE)
    )

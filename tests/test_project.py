"""What holds for the project as a whole: layers, cheap imports, short tools, honest recipes.

Each check is a function from files to a list of complaints, and is itself tested on small planted
mistakes: a check that cannot complain proves nothing.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent

# ---------------------------------------------------------------------------------------- layers

BASE = {"structures", "registry", "config", "files", "signals", "visualize"}
MODEL = {"nn", "backbones", "detectors"}
TOP = {"engine", "inference", "analysis"}
ALLOWED = {
    **{layer: BASE for layer in BASE - {"signals"}},
    "ops": BASE,
    "proposals": {"registry"},  # numpy alone
    "nn": BASE | {"ops"},
    "backbones": BASE | {"ops", "nn"},
    "detectors": BASE | {"ops", "nn", "backbones"},
    "data": BASE | {"ops", "proposals"},
    "evaluation": BASE | {"ops"},
    **{layer: BASE | {"ops", "proposals", "data", "evaluation"} | MODEL | TOP for layer in TOP},
    "signals": set[str](),
    "cli": {"signals"},  # the tools' frame knows no detector
    "": set[str](),  # detkit/__init__.py: eager imports there would be paid by everyone
}
NATIVE = "detkit.evaluation._native"  # built where a compiler is present
OPTIONAL = {"onnx", "onnxruntime", "onnxscript", "supervision", "timm"}  # extras


def module_sources(folder: Path) -> dict[str, str]:
    """Sources below a package's folder by module name; "detkit.ops" is `detkit/ops/__init__.py`."""
    sources = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        sources[".".join(parts).removesuffix(".__init__")] = path.read_text(encoding="utf-8")
    return sources


def imported_names(node: ast.Import | ast.ImportFrom, package: str) -> list[str]:
    """Dotted names that a statement may import, relative ones resolved: module and module.name."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    origin = node.module or ""
    if node.level:
        above = package.split(".")[: len(package.split(".")) - node.level + 1]
        origin = ".".join([*above, origin]).rstrip(".")
    return [f"{origin}.{alias.name}" for alias in node.names]


def imported_modules(sources: Mapping[str, str], module: str) -> set[str]:
    """Modules of `sources` that a module imports, anywhere in its text.

    `from detkit.ops import boxes` imports the file boxes.py, `from detkit.ops import box_iou` the
    package's own file; `from detkit import __version__` is the one thing all may ask of the root.
    """
    is_package = any(name.startswith(f"{module}.") for name in sources)
    package = module if is_package else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(sources[module])):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for name in imported_names(node, package):
                if name in ("detkit.__version__", NATIVE):
                    continue
                while name and name not in sources:
                    name = name.rpartition(".")[0]
                if name and name != module:
                    found.add(name)
    return found


def layer_of(module: str) -> str:
    return [*module.split("."), ""][1]


def upward_imports(sources: Mapping[str, str]) -> Iterator[str]:
    for module in sources:
        layer = layer_of(module)
        if layer not in ALLOWED:
            yield f"{module}: layer {layer!r} has no place yet; give it one in ALLOWED"
            continue
        if module == "detkit":  # it imports lazily; the block for type checkers names its offers
            continue
        for imported in sorted(imported_modules(sources, module)):
            if layer_of(imported) not in ALLOWED[layer] | {layer}:
                yield f"{module} imports {imported}"


def circles(graph: Mapping[str, set[str]]) -> Iterator[str]:
    """Shortest way from each node back to itself, for nodes that have one."""
    for start in graph:
        ways = [[start]]
        reached: set[str] = set()
        for way in ways:  # grows while it is walked: breadth first
            for node in sorted(graph.get(way[-1], ())):
                if node not in reached:
                    reached.add(node)
                    ways.append([*way, node])
        if start in reached:
            yield " -> ".join(next(way for way in ways[1:] if way[-1] == start))


def import_circles(sources: Mapping[str, str]) -> list[str]:
    """Circles between files and circles between layers."""
    files = {module: imported_modules(sources, module) for module in sources if module != "detkit"}
    layers: dict[str, set[str]] = {}
    for module, imported in files.items():
        below = {layer_of(name) for name in imported} - {layer_of(module)}
        layers.setdefault(layer_of(module), set()).update(below)
    return [*circles(files), *circles(layers)]


def hidden_imports(sources: Mapping[str, str]) -> Iterator[str]:
    """Imports inside functions, and imports by a call, except of optional dependencies."""
    for module, source in sources.items():
        for function in ast.walk(ast.parse(source)):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            for node in ast.walk(function):
                names = hidden_names(node)
                if module == "detkit" and names == ["import_module"]:
                    continue
                yield from (
                    f"{module}:{node.lineno} imports {name} inside a function"  # type: ignore[attr-defined]
                    for name in names
                    if name.split(".")[0] not in OPTIONAL and name != NATIVE
                )


def hidden_names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        return imported_names(node, "")
    if isinstance(node, ast.Call):
        called = ast.unparse(node.func).rpartition(".")[2]
        return [called] if called in ("import_module", "__import__") else []
    return []


def planted(*lines: str) -> dict[str, str]:
    """A small package: one "module: source" per line, `;` between statements."""
    modules = dict(line.split(": ", 1) for line in lines)
    return {name: "\n".join(source.split("; ")) for name, source in modules.items()}


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    found = module_sources(ROOT / "detkit")
    assert len(found) > 5
    return found


def test_imports_point_down(sources: dict[str, str]) -> None:
    assert list(upward_imports(sources)) == []


def test_no_import_circle(sources: dict[str, str]) -> None:
    assert import_circles(sources) == []


def test_no_import_hides_in_a_function(sources: dict[str, str]) -> None:
    assert list(hidden_imports(sources)) == []


@pytest.mark.parametrize(
    ("lower", "statement"),
    [
        ("detkit.ops.boxes", "from detkit.nn import fpn"),
        ("detkit.ops.boxes", "from detkit.nn.fpn import FPN"),
        ("detkit.ops.boxes", "import detkit.nn.fpn"),
        ("detkit.ops.boxes", "from ..nn import fpn"),
        ("detkit.ops", "from ..nn.fpn import FPN"),
        ("detkit.ops.boxes", "from .. import nn"),
        ("detkit.ops.boxes", "if TYPE_CHECKING:\n    from detkit.nn import fpn"),
        ("detkit.ops.boxes", "def f():\n    from detkit.nn import fpn"),
        ("detkit.structures", "from detkit.nn import fpn"),
        ("detkit.structures", "from detkit import nn"),
        ("detkit.data.coco", "from detkit.nn import fpn"),
        ("detkit.evaluation.coco", "from detkit.nn import fpn"),
        ("detkit.config", "from detkit import load"),
        ("detkit.engine.train", "import detkit.cli"),
    ],
)
def test_upward_import_is_noticed(lower: str, statement: str) -> None:
    package = {
        "detkit": "",
        "detkit.ops": "",
        "detkit.nn": "",
        "detkit.nn.fpn": "",
        "detkit.cli": "",
    }
    assert len(list(upward_imports({**package, "detkit.ops.boxes": "", lower: statement}))) == 1


def test_downward_imports_are_allowed() -> None:
    package = planted(
        "detkit: __version__ = '1'",
        "detkit.structures: from detkit import __version__",
        "detkit.ops: from detkit.ops.boxes import box_iou; from .boxes import box_area",
        "detkit.ops.boxes: import torch; from detkit.structures import Target",
        "detkit.nn.fpn: from detkit import ops; from detkit.ops import box_iou",
        "detkit.backbones.resnet: from detkit.nn import fpn",
        "detkit.engine.train: from detkit.backbones import resnet; from detkit.data import coco",
        "detkit.data.coco: from detkit.ops import boxes",
        "detkit.inference.predictor: from detkit.engine import train",
    )
    assert list(upward_imports(package)) == []
    assert import_circles(package) == []


def test_new_layer_needs_a_place() -> None:
    assert "has no place" in next(upward_imports({"detkit.utils": ""}))


@pytest.mark.parametrize(
    "package",
    [
        planted(  # two files
            "detkit.ops.a: from detkit.ops.b import x", "detkit.ops.b: from detkit.ops import a"
        ),
        planted(  # a file and the package that offers it
            "detkit.ops: from detkit.ops.a import x", "detkit.ops.a: from detkit.ops import y"
        ),
        planted(  # two layers, though no two files
            "detkit.engine.a: from detkit.inference import b",
            "detkit.inference.b: x = 1",
            "detkit.inference.c: from detkit.engine import d",
            "detkit.engine.d: x = 1",
        ),
        planted(  # three layers
            "detkit.config: from detkit import registry",
            "detkit.registry: from detkit import structures",
            "detkit.structures: from detkit import config",
        ),
    ],
)
def test_circle_is_noticed(package: dict[str, str]) -> None:
    assert import_circles(package) != []


@pytest.mark.parametrize(
    "body",
    [
        "import torch",
        "from detkit.ops import boxes",
        "from . import boxes",
        "importlib.import_module('torch')",
        "return __import__('torch')",
    ],
)
def test_hidden_import_is_noticed(body: str) -> None:
    assert len(list(hidden_imports({"detkit.ops.boxes": f"def f():\n    {body}"}))) == 1


def test_optional_dependency_may_hide() -> None:
    source = "import torch\ndef f():\n    import onnx\n    from timm.models import x"
    assert list(hidden_imports({"detkit.a": source})) == []


# ------------------------------------------------------------------------------ cost of an import

# The audit hook sees every socket, also those of libraries that swallow the error; it is set
# before the first import of ours.
WATCH_IMPORTS = """
import importlib, pkgutil, sys
attempts = []
def hook(event, arguments):
    if event.startswith("socket.") and event != "socket.gethostname":
        attempts.append(event)
        raise OSError(f"{event} while importing")
sys.addaudithook(hook)
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, f"{sys.argv[1]}."):
    importlib.import_module(module.name)
if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
    attempts.append("CUDA initialised")
print(*(name for name in sys.modules if name.partition(".")[0] == sys.argv[1]))
sys.exit("; ".join(attempts) or 0)
"""


def python(code: str, *arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_import_opens_no_socket_and_wakes_no_gpu(sources: dict[str, str]) -> None:
    done = python(WATCH_IMPORTS, "detkit")
    assert done.returncode == 0, done.stderr[-2000:]
    # a folder without __init__.py is not walked; the compiled module is there where it was built
    assert set(done.stdout.split()) - {NATIVE} == set(sources)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("import socket; socket.socket()", "socket.__new__"),
        ("import socket\ntry: socket.socket()\nexcept OSError: 0", "socket.__new__"),
        (
            "import socket\ntry:\n    socket.getaddrinfo('a.b', 1)\nexcept OSError:\n    pass",
            "getadd",
        ),
        pytest.param("import torch; torch.zeros(1).cuda()", "CUDA", marks=pytest.mark.gpu),
    ],
)
def test_costly_import_is_noticed(tmp_path: Path, source: str, complaint: str) -> None:
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted" / "__init__.py").touch()
    (tmp_path / "planted" / "module.py").write_text(source, encoding="utf-8")
    done = python(WATCH_IMPORTS, "planted", folder=tmp_path)
    assert done.returncode == 1
    assert complaint in done.stderr


def test_import_detkit_alone_is_cheap() -> None:
    done = python("import sys, detkit; print({'torch', 'numpy', 'cv2'} & {*sys.modules})")
    assert done.stdout == "set()\n", done.stderr


def test_evaluation_of_files_imports_neither_torch_nor_plots() -> None:
    heavy = "{'torch', 'matplotlib', 'cv2', 'pydantic', 'pycocotools'}"
    done = python(f"import sys, detkit.evaluation; print({heavy} & {{*sys.modules}})")
    assert done.stdout == "set()\n", done.stderr


def test_submodules_are_imported_on_first_use() -> None:
    done = python("import detkit; print(detkit.ops.__name__, callable(detkit.load))")
    assert done.stdout.split() == ["detkit.ops", "True"], done.stderr


def test_unknown_attribute_is_an_attribute_error() -> None:
    done = python("import detkit; detkit.lod")
    assert "AttributeError: module 'detkit' has no attribute 'lod'" in done.stderr


# ------------------------------------------------------------------------ tools, recipes and text

LONGEST_TOOL = 60


def files_of(folder: str, pattern: str) -> list[Path]:
    return sorted((ROOT / folder).glob(pattern))


@pytest.mark.parametrize("path", files_of("tools", "*.py"), ids=lambda path: path.name)
def test_tool_only_parses_arguments_and_calls_the_package(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_TOOL


def is_classifier(text: str) -> bool:
    """Whether a recipe cuts boxes out to classify them, by what it sets and not by its header."""
    data = (yaml.safe_load(text) or {}).get("data")
    return isinstance(data, dict) and "crop" in data


def header_faults(name: str, text: str) -> list[str]:
    """What is missing in the comment on top of a recipe."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    header = "\n".join(lines)
    tool, measure = ("train_classifier", "accuracy") if is_classifier(text) else ("train", "AP")
    command = f"python tools/{tool}.py configs/{name}"
    faults = [] if command in header else [f"no line {command!r}"]
    if re.search(r"\bnot measured\b", header, re.IGNORECASE):
        return faults
    if not re.search(rf"\b{measure}\b[^\n]*\b0\.\d", header):
        faults.append(f'neither a measured "{measure} 0.xxx" nor "not measured"')
    elif not re.search(r"\b(CPU|GPU|cores?)\b", header):
        faults.append("a result without the hardware it was measured on")
    return faults


@pytest.mark.parametrize("path", files_of("configs", "**/*.yaml"), ids=lambda path: path.name)
def test_recipe_says_its_command_and_result(path: Path) -> None:
    name = path.relative_to(ROOT / "configs").as_posix()
    assert header_faults(name, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("header", "count"),
    [
        ("# python tools/train.py configs/a.yaml\n# AP 0.512 in 9 minutes on 2 CPU cores", 0),
        ("# Digits.\n#\n#     python tools/train.py configs/a.yaml\n# Not measured.", 0),
        ("# python tools/train.py configs/b.yaml\n# Not measured.", 1),
        ("# python tools/train.py configs/a.yaml\n# Good.", 1),
        ("# python tools/train.py configs/a.yaml\n# AP 0.512", 1),
        ("name: a\n# python tools/train.py configs/a.yaml\n# Not measured.", 2),
        ("", 2),
    ],
)
def test_header_faults_are_noticed(header: str, count: int) -> None:
    assert len(header_faults("a.yaml", f"{header}\nname: a\n")) == count


@pytest.mark.parametrize(
    ("header", "count"),
    [
        ("# python tools/train_classifier.py configs/a.yaml\n# accuracy 0.512 on 2 CPU cores", 0),
        ("# python tools/train_classifier.py configs/a.yaml\n# Not measured.", 0),
        ("# python tools/train.py configs/a.yaml\n# accuracy 0.512 on 2 CPU cores", 1),
        ("# python tools/train_classifier.py configs/a.yaml\n# AP 0.512 on 2 CPU cores", 1),
        ("# python tools/train_classifier.py configs/a.yaml\n# accuracy 0.512", 1),
        ("# python tools/train.py configs/a.yaml\n# AP 0.512 on 2 CPU cores", 2),
    ],
)
def test_header_faults_of_a_classifier_are_noticed(header: str, count: int) -> None:
    recipe = "name: a\ndata: {crop: {size: 28}}\n"
    assert len(header_faults("a.yaml", f"{header}\n{recipe}")) == count


def test_header_of_a_classifier_does_not_pass_for_a_detector() -> None:
    header = "# python tools/train_classifier.py configs/a.yaml\n# accuracy 0.512 on 2 CPU cores"
    assert len(header_faults("a.yaml", f"{header}\nname: a\ndata: {{resize: {{}}}}\n")) == 2


def test_the_recipe_of_make_demo_exists() -> None:
    (recipe,) = set(re.findall(r"configs/\S+\.yaml", (ROOT / "Makefile").read_text("utf-8")))
    assert (ROOT / recipe).is_file()


# What is true on one machine only: its folders, its package registry.
LOCAL_TEXT = re.compile(
    r"/work/|\.\./shared|/opt/(pypi|wheels)|/home/\w|/Users/\w|--(extra-)?index-url|--find-links"
    r"|pypi\.org/simple|pythonhosted\.org|artifactory|\b(?:10|192\.168)(?:\.\d{1,3}){2,3}\b"
)
TEXT_SUFFIXES = {".md", ".py", ".yaml", ".yml", ".toml", ".txt", ".html", ""}


def local_text(lines: Iterable[str]) -> list[str]:
    return [line.strip() for line in lines if LOCAL_TEXT.search(line)]


def texts_for_readers() -> list[Path]:
    folders = ["docs", "configs", "tools", "demo", "benchmarks", "detkit", ".ci", "."]
    found = [
        path
        for folder in folders
        for path in (ROOT / folder).glob("*" if folder == "." else "**/*")
        if path.is_file() and path.suffix in TEXT_SUFFIXES and path.name != ".git"
    ]
    assert {"Makefile", "pyproject.toml", "run", "cli.py"} <= {path.name for path in found}
    return found


def test_no_figure_is_left_to_be_filled_in() -> None:
    places = [p.name for p in texts_for_readers() if re.search(r"\bRESULT", p.read_text("utf-8"))]
    assert places == []


def test_text_holds_on_every_machine() -> None:
    faults = {
        str(path.relative_to(ROOT)): local_text(path.read_text(encoding="utf-8").splitlines())
        for path in texts_for_readers()
    }
    assert {name: lines for name, lines in faults.items() if lines} == {}


@pytest.mark.parametrize(
    "line",
    [
        "see /work/main/a.py",
        "data: ../shared/data",
        "pip install --index-url https://host/simple detkit-vision",
        "PIP_FIND_LINKS=/opt/wheels",
        "http://10.0.0.7:8080/simple",
        "/home/someone/data",
    ],
)
def test_local_text_is_noticed(line: str) -> None:
    assert local_text([line]) == [line]


def test_ordinary_text_is_no_local_text() -> None:
    text = textwrap.dedent(
        """
        pip install detkit-vision, then work/images or ./shared/data
        lr 0.127.5 and https://download.pytorch.org/models/resnet18-f37072fd.pth
        """
    )
    assert local_text(text.splitlines()) == []


def test_no_lock_file_is_tracked() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "uv.lock", "poetry.lock", "shared"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == ""

"""What a `_target_` of the configuration names, or one sentence on why nothing goes by that name."""

import difflib
import importlib
import importlib.util
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra.utils import get_object

from src.errors import UserError, first_line

ROOT = Path(__file__).parent.parent
FEW = 5  # names that are listed where none is close
BASES = {  # of what is built by name, by the place in the configuration
    "algorithm": "src.algorithms.base.Algorithm",
    "critic": "src.critic.base.Critic",
    "reset": "src.resets.base.Reset",
    "regulariser": "src.regularisers.base.Regulariser",
    "suite.rewards": "src.rewards.base.RewardModel",
    "suite.judges": "src.rewards.base.RewardModel",
}


def target_of(node: dict[str, Any], path: str) -> Any:
    """The class or function that a component is built by. Raises UserError where there is none of that name."""
    name = node["_target_"]
    try:
        target = get_object(name)
    except Exception as error:
        raise UserError(f"{path}._target_: {_why_not(str(name), error)}") from error
    if not callable(target):
        raise UserError(f"{path}._target_: {name} is no class: give MODULE.CLASS{_names_in(target, '')}.")
    return target


def check_base(target: Any, path: str) -> None:
    """Raises UserError on a class at a place whose classes have a base that it lacks."""
    place = path if path in BASES else path.rpartition(".")[0]
    if place in BASES and inspect.isclass(target) and not issubclass(target, get_object(BASES[place])):
        raise UserError(f"{path}._target_: {target.__name__} is no {BASES[place]}: let its class inherit from that.")


def _why_not(name: str, error: Exception) -> str:
    module, _, last = name.rpartition(".")
    if not module:
        return f"{name} is no MODULE.CLASS, such as src.resets.active.ActiveReset."
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as missing:
        if missing.name and (module == missing.name or module.startswith(f"{missing.name}.")):
            return f"there is no module {missing.name}{_modules_beside(missing.name)}."
        return f"{module} cannot be imported (it needs {missing.name}, which is not there): mend the module."
    except Exception as broken:
        place = f", line {broken.lineno}" if isinstance(broken, SyntaxError) else ""
        reason = broken.msg if isinstance(broken, SyntaxError) else first_line(broken)
        return f"{_place(module)} cannot be imported ({type(broken).__name__}{place}: {reason}): mend the module."
    if hasattr(found, last):
        return f"{name} cannot be taken ({' '.join(str(error).split())}): give MODULE.CLASS."
    return f"{_place(module)} has no {last}{_names_in(found, last)}."


def _names_in(module: Any, wanted: str) -> str:
    """Classes of a module that may have been meant."""
    if not isinstance(module, ModuleType):
        return ""
    own = [n for n, each in vars(module).items() if inspect.isclass(each) and each.__module__ == module.__name__]
    return _offered(wanted, own)


def _modules_beside(module: str) -> str:
    """Modules of the same package that may have been meant."""
    package, _, last = module.rpartition(".")
    spec = importlib.util.find_spec(package) if package else None
    folders = (spec.submodule_search_locations or []) if spec else []
    return _offered(last, sorted(file.stem for folder in folders for file in Path(folder).glob("[!_]*.py")))


def _offered(wanted: str, names: list[str]) -> str:
    if close := difflib.get_close_matches(wanted, names, n=1):
        return f": it has {close[0]}"
    return f": it has {', '.join(names)}" if 0 < len(names) <= FEW else ""


def _place(module: str) -> str:
    """The file of a module of this repository; of another its name."""
    file = ROOT / f"{module.replace('.', '/')}.py"
    return str(file.relative_to(ROOT)) if file.exists() else module

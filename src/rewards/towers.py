"""CLIP towers, of which one copy in memory may serve several rewards."""

from pathlib import Path
from weakref import WeakValueDictionary

from transformers import CLIPModel

from src.hub import load_strictly
from src.rewards.base import DTYPES, Precision

POSITIONS = ("embeddings.position_ids",)  # older files hold this table
_shared: WeakValueDictionary[tuple[Path, str], CLIPModel] = WeakValueDictionary()


def clip_tower(folder: Path, option: str, precision: Precision = "fp32", shared: bool = False) -> CLIPModel:
    """A frozen CLIPModel.

    Where `shared`, the one that lives already, of the same folder (of the hub: revision) and precision; it must not be
    trained.
    """
    key = (folder.resolve(), precision)
    if shared and key in _shared:
        return _shared[key]
    model = in_precision(load_strictly(CLIPModel, folder, option, ignored=POSITIONS), precision)
    if shared:
        _shared[key] = model
    return model


def in_precision(model: CLIPModel, precision: Precision) -> CLIPModel:
    """The same model in another precision, but for its logit scale, which bfloat16 would get wrong by a percent."""
    scale = model.logit_scale.data.clone()
    model = model.to(DTYPES[precision])
    model.logit_scale.data = scale
    return model

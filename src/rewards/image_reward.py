"""ImageReward v1.0 (Xu et al. 2023, arXiv 2304.05977) from the file that its authors released."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from transformers import BertTokenizer, BlipTextConfig, BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from src.hub import TOKENIZER, fetch, load_strictly, load_tokenizer, read_checkpoint, read_json
from src.rewards.base import DTYPES, Images, Precision, RewardModel
from src.rewards.hps import CLIP_MEAN, CLIP_STD
from src.rewards.image_text import ImageTextReward
from src.rewards.released import blip_vision, linear_layers, part

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the authors' raw scores; in their package, not in the file
UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")


class ImageReward(ImageTextReward):
    """(MLP(first token of BERT that attends to BLIP's patches) - mean) / std, by the authors' mean and std.

    The class token of its own BLIP tower is what a critic sees (TDPO's code gives it CLIP ViT-L/14's embedding).

    Args:
        path: folder or hub id with `filename` and `med_config.json`; `revision` of the latter.
        tokenizer: folder or hub id of BERT's (uncased); `tokenizer_revision` of the latter.
        head_width: channels of an attention head of the image tower, which the file does not tell.
        precision: of both towers; the MLP stays in float32. batch_size: pictures scored at a time.
    """

    max_tokens = 35

    def __init__(
        self,
        path: str = "THUDM/ImageReward",
        filename: str = "ImageReward.pt",
        revision: str | None = None,
        tokenizer: str = "google-bert/bert-base-uncased",
        tokenizer_revision: str | None = None,
        head_width: int = 64,
        precision: Precision = "fp32",
        batch_size: int = 256,
    ):
        RewardModel.__init__(self)
        option = f"imagereward path={path}"
        folder = fetch(path, "imagereward path", [filename, "med_config.json"], revision=revision)
        words = fetch(tokenizer, "imagereward tokenizer", [], TOKENIZER, tokenizer_revision)
        self.tokenizer = load_tokenizer(BertTokenizer, words, "imagereward tokenizer")
        self.tokenizer.add_tokens(["[DEC]", "[ENC]"], special_tokens=True)  # BLIP's; the embedding table has them
        state = {k: v for k, v in read_checkpoint(folder / filename, option).items() if not k.startswith(UNUSED)}
        vision, vision_state = blip_vision(part(state, "blip.visual_encoder."), option, head_width)
        med = read_json(folder / "med_config.json", option)
        text = text_config(med, vision.hidden_size)
        self.vision = load_strictly(BlipVisionModel, vision_state, option, vision).to(DTYPES[precision])
        self.text = load_strictly(HeadlessText, part(state, "blip.text_encoder."), option, text).to(DTYPES[precision])
        self.head = nn.Sequential(*linear_layers(part(state, "mlp."), option))
        self._prepare(vision.image_size, vision.hidden_size, CLIP_MEAN, CLIP_STD, DTYPES[precision])
        self.batch_size = batch_size
        self.requires_grad_(False).eval()

    def forward(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, " b"]:
        return (super().forward(images, prompts) - MEAN) / STD


class HeadlessText(BlipTextModel):
    """BLIP's text encoder without the pooling layer, which the file has no weights for."""

    def __init__(self, config: BlipTextConfig):
        super().__init__(config, add_pooling_layer=False)


def text_config(med: dict, vision_width: int) -> BlipTextConfig:
    """med_config.json as transformers has it; its encoder_width is overruled, as in the authors' code."""
    # transformers gives only decoders cross-attention; attention among the tokens stays bidirectional
    return BlipTextConfig(**med | {"encoder_hidden_size": vision_width, "is_decoder": True})

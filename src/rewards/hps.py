"""Human Preference Score v2 (Wu et al. 2023, arXiv 2306.09341) from the file that its authors released."""

import html
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from src.hub import TOKENIZER, fetch, fetch_file, load_strictly, load_tokenizer, read_checkpoint
from src.rewards.base import DTYPES, Precision, RewardModel
from src.rewards.clip import CLIPReward, cosine
from src.rewards.released import clip_config, clip_from_open_clip
from src.rewards.towers import in_precision

LIGATURES = {"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬆ": "st"}
PLAIN = str.maketrans(
    LIGATURES
    | dict.fromkeys("ʼ‘’‚‛", "'")
    | dict.fromkeys("“”„‟", '"')
    | {chr(code + 0xFEE0): chr(code) for code in range(0x21, 0x7F)}  # letters as wide as Chinese ones
)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class HPSReward(CLIPReward):
    """cos(image embedding, text embedding), which is what the authors' package returns: without the logit scale.

    Where it differs from the package: a prompt's quotes, ligatures, wide letters and HTML entities are made plain as
    there (ftfy), but text that was decoded wrongly is not repaired; and the package scores under fp16 autocast.

    Args:
        path: the file, or folder or hub id with `filename`: `HPS_v2_compressed.pt` (v2.0) or
            `HPS_v2.1_compressed.pt`, open_clip's ViT-H-14; `revision` of the hub's.
        tokenizer: folder or hub id of CLIP's tokenizer; `tokenizer_revision` of the latter.
        vision_head, text_head: channels of an attention head, which the file does not tell.
        precision, batch_size: see CLIPReward.
    """

    fit = "pad"

    def __init__(
        self,
        path: str = "xswu/HPSv2",
        filename: str = "HPS_v2.1_compressed.pt",
        revision: str | None = None,
        tokenizer: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        tokenizer_revision: str | None = None,
        vision_head: int = 80,
        text_head: int = 64,
        precision: Precision = "fp32",
        batch_size: int = 256,
    ):
        RewardModel.__init__(self)
        option = f"hps path={path}"
        words = load_tokenizer(
            CLIPTokenizer, fetch(tokenizer, "hps tokenizer", [], TOKENIZER, tokenizer_revision), "hps tokenizer"
        )
        content = read_checkpoint(fetch_file(path, "hps path", filename, revision), option)
        state = content.get("state_dict", content)
        config = clip_config(state, option, vision_head, text_head, words.eos_token_id)
        clip = load_strictly(CLIPModel, clip_from_open_clip(state, option), option, config)
        processor = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD}
        self._adopt(in_precision(clip, precision), words, processor, DTYPES[precision])
        self.batch_size = batch_size

    def embed_texts(self, prompts: Sequence[str]) -> Float[Tensor, "b d"]:
        return super().embed_texts([plain(prompt) for prompt in prompts])

    def too_long(self, prompts: Sequence[str]) -> list[str]:
        return [prompt for prompt in prompts if super(HPSReward, self).too_long([plain(prompt)])]

    def score_of(self, embedded: Float[Tensor, "b d"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        return cosine(embedded, self.embed_texts(prompts))


def plain(prompt: str) -> str:
    """A prompt as open_clip's tokenizer reads it."""
    return html.unescape(html.unescape(prompt.translate(PLAIN)))

"""Retrieval policies, one file each. A new one is a class, a line in `POLICIES` and a YAML file."""

from resv.policies.base import Policy, PolicyState, run_layer, run_layers
from resv.policies.flash_vstream import FlashVStream
from resv.policies.flexgen_stream import FlexGenStream
from resv.policies.full import Full
from resv.policies.infinigen import InfiniGen
from resv.policies.infinigenp import InfiniGenP
from resv.policies.infllm import InfLLM
from resv.policies.oaken import Oaken
from resv.policies.quest import Quest
from resv.policies.rekv import ReKV
from resv.policies.rekv_vrex import ReKVVRex
from resv.policies.resv import ReSV
from resv.policies.streamingllm import StreamingLLM
from resv.policies.topk import TopK
from resv.policies.videollm_online import VideoLLMOnline

__all__ = ["POLICIES", "Full", "Policy", "PolicyState", "ReSV", "TopK", "run_layer", "run_layers"]

POLICIES: dict[str, type[Policy]] = {
    "resv": ReSV,
    "full": Full,
    "flexgen_stream": FlexGenStream,
    "topk": TopK,
    "rekv": ReKV,
    "rekv_vrex": ReKVVRex,
    "infinigen": InfiniGen,
    "infinigenp": InfiniGenP,
    "infllm": InfLLM,
    "quest": Quest,
    "streamingllm": StreamingLLM,
    "flash_vstream": FlashVStream,
    "oaken": Oaken,
    "videollm_online": VideoLLMOnline,
}

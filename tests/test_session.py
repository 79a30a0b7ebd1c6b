"""Streaming sessions: what each style feeds the model, dialogue, batches, steps of two frames, refusals."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from resv.huggingface.answers import Answer, FrameEvent
from resv.huggingface.attach import attach
from resv.huggingface.encode_ahead import encode_ahead
from resv.huggingface.load import load_model
from resv.huggingface.session import Event, Frame, FrameError, Session, SessionConfig
from resv.huggingface.text import PROMPTS, ByteText, PretrainedText, Prompts, prompts_for, text_codec
from resv.huggingface.tiny import tiny_model
from resv.huggingface.visual_memory import VisualMemory
from resv.policies import POLICIES
from resv.policies.base import Policy
from resv.policies.flash_vstream import FlashVStream
from resv.policies.full import Full
from resv.policies.rekv import ReKV
from resv.policies.videollm_online import VideoLLMOnline

LLAVA = tiny_model("tiny-llava")
QUESTION = "\nUser: what?\nAssistant:"
SHORT = SessionConfig(max_new_tokens=5)


def frames(n: int, size: tuple[int, int] = (40, 60), seed: int = 0) -> list[Frame]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(n)]


def events(policy: Policy, n: int, asks: list[tuple[float, str]], config: SessionConfig = SHORT) -> list[Event]:
    with attach(LLAVA, policy) as attachment:
        return list(Session(attachment, config=config).stream(frames(n), asks))


def only_answers(told: list[Event]) -> list[Answer]:
    return [event for event in told if isinstance(event, Answer)]


def embeds_of(parts: list[str | Frame | list[int]]) -> Tensor:
    """What the model is fed: text, token ids and frames as embeddings in a row, (1, n, hidden)."""
    made = []
    with attach(LLAVA, Full()) as attachment:
        for part in parts:
            if isinstance(part, np.ndarray):
                made.append(attachment.encode_frame(torch.from_numpy(part)[None]))
            else:
                ids = list(part.encode()) if isinstance(part, str) else part
                made.append(attachment.embed_tokens(torch.tensor([ids])))
    return torch.cat(made, dim=1)


def logits_after(parts: list[str | Frame | list[int]]) -> Tensor:
    """(V,) from one pass of the model as transformers has it."""
    with torch.no_grad():
        return LLAVA(inputs_embeds=embeds_of(parts)).logits[0, -1]


def greedy(parts: list[str | Frame | list[int]], n: int) -> tuple[int, ...]:
    said: list[int] = []
    for _ in range(n):
        said.append(int(logits_after([*parts, said]).argmax()) if said else int(logits_after(parts).argmax()))
    return tuple(said)


def test_an_answer_is_what_one_pass_over_everything_would_say() -> None:
    answer = only_answers(events(Full(), 3, [(9.0, "what?")]))[0]
    assert answer.token_ids == greedy([*frames(3), QUESTION], 5)
    assert answer.text == ByteText(256).decode(list(answer.token_ids))
    assert (answer.n_frames, answer.n_prompt, answer.ended) == (3, len(QUESTION), "length")
    assert answer.first_token_s > 0
    assert answer.decode_s > 0
    assert answer.n_passes == 4
    assert answer.time_per_token_s == answer.decode_s / 4


def test_questions_come_in_time() -> None:
    told = events(Full(), 4, [(float("inf"), "end?"), (1.0, "one?"), (1.5, "half?"), (-1.0, "before?")])
    kinds = [event.index if isinstance(event, FrameEvent) else event.question for event in told]
    assert kinds == ["before?", 0, 1, "one?", "half?", 2, 3, "end?"]
    assert [a.n_frames for a in only_answers(told)] == [0, 2, 2, 4]
    assert [a.timestamp_s for a in only_answers(told)] == [-1.0, 1.0, 1.5, 3.0]
    assert [e.n_tokens for e in told if isinstance(e, FrameEvent)] == [4, 8, 12, 16]


def test_frames_one_by_one_are_the_same_as_a_stream_of_them() -> None:
    ref = only_answers(events(ReKV(r=2), 4, [(9.0, "what?")]))[0]
    with attach(LLAVA, ReKV(r=2)) as attachment:
        session = attachment.session(config=SHORT)
        for index, frame in enumerate(frames(4)):
            (event,) = session.add_frame(frame)
            assert isinstance(event, FrameEvent)
            assert (event.index, event.timestamp_s) == (index, float(index))
        answer = session.ask("what?")
    assert isinstance(answer, Answer)
    assert answer.token_ids == ref.token_ids


@pytest.mark.parametrize("dialogue", ["policy", "dropped", "kept"])
def test_a_question_is_dropped_or_kept(dialogue: str) -> None:
    (fresh,) = only_answers(events(ReKV(r=2), 3, [(9.0, "what?")]))
    with attach(LLAVA, ReKV(r=2)) as attachment:
        session = Session(attachment, config=SHORT.model_copy(update={"dialogue": dialogue}))
        list(session.stream(frames(3)))
        first = session.ask("who?")
        grown = session.cache.n_tokens - 12
        second = session.ask("what?")
    assert isinstance(first, Answer)
    assert isinstance(second, Answer)
    if dialogue == "kept":
        assert grown == first.n_prompt + len(first.token_ids) - 1
    else:
        assert grown == 0
        assert second.token_ids == fresh.token_ids


def test_an_answer_ends_by_itself() -> None:
    ids = only_answers(events(Full(), 2, [(9.0, "what?")]))[0].token_ids
    stop = next(i for i in range(1, 5) if ids[i] not in ids[:i])
    codec = ByteText(256, frozenset((ids[stop],)))
    with attach(LLAVA, Full()) as attachment:
        session = Session(attachment, config=SHORT, codec=codec)
        list(session.stream(frames(2)))
        answer = session.ask("what?", 4 + stop)
    assert isinstance(answer, Answer)
    assert answer.token_ids == ids[:stop]
    assert answer.ended == "itself"
    assert answer.n_passes == stop  # the last one gave the ending token
    assert answer.time_per_token_s == answer.decode_s / stop


def test_an_answer_of_no_tokens_is_refused() -> None:
    with attach(LLAVA, Full()) as attachment:
        session = Session(attachment, config=SHORT)
        list(session.stream(frames(1)))
        with pytest.raises(ValueError, match="max_new_tokens is 0; allowed: at least 1"):
            session.ask("what?", 0)


def test_a_batch_is_its_videos_side_by_side() -> None:
    videos = [frames(3, seed=1), frames(3, seed=2)]
    with attach(LLAVA, ReKV(r=2)) as attachment:
        together = Session(attachment, batch=2, config=SHORT)
        list(together.stream(zip(*videos, strict=True)))
        answers = together.ask("what?")
        assert isinstance(answers, list)
        for item, video in enumerate(videos):
            alone = Session(attachment, config=SHORT)
            list(alone.stream(video))
            answer = alone.ask("what?")
            assert isinstance(answer, Answer)
            assert (answers[item].item, answers[item].token_ids) == (item, answer.token_ids)
        with pytest.raises(FrameError, match="frame 3: 1 pictures for a batch of 2"):
            together.add_frame(frames(1)[0])


# --- VideoLLM-online


def separator_probability(parts: list[str | Frame | list[int]]) -> float:
    return float(logits_after(parts).softmax(dim=-1)[ord(",")])


@pytest.fixture
def likely_separator() -> Iterator[None]:
    """The separator wins everywhere."""
    head = LLAVA.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.zeros(256))
    with torch.no_grad():
        head.bias[ord(",")] = 10.0
    yield
    head.bias = None


@pytest.mark.usefixtures("likely_separator")
def test_silence_feeds_the_separator_with_the_next_frame() -> None:
    told = events(VideoLLMOnline(silence_threshold=0.5), 3, [])
    assert not only_answers(told)
    a, b, c = frames(3)
    fed: list[list[str | Frame | list[int]]] = [["\n[", a], ["\n[", a, ",", b], ["\n[", a, ",", b, ",", c]]
    for event, parts in zip(told, fed, strict=True):
        assert isinstance(event, FrameEvent)
        assert event.separator_probability == pytest.approx(separator_probability(parts), abs=1e-5)
        assert event.n_tokens == embeds_of(parts).shape[1]


@pytest.mark.usefixtures("likely_separator")
def test_a_separator_below_the_threshold_is_no_silence() -> None:
    ref = separator_probability(["\n[", frames(1)[0]])
    assert 0.5 < ref < 1.0
    assert not only_answers(events(VideoLLMOnline(silence_threshold=ref - 0.001), 1, []))
    assert len(only_answers(events(VideoLLMOnline(silence_threshold=min(1.0, ref + 0.001)), 1, []))) == 1


def test_what_was_said_stays_and_is_closed_before_the_next_frame() -> None:
    a, b = frames(2)
    told = events(VideoLLMOnline(), 2, [(0.0, "what?")])
    first, unasked, asked, second, _ = told
    assert isinstance(first, FrameEvent)
    assert isinstance(unasked, Answer)
    assert unasked.question is None
    opened: list[str | Frame | list[int]] = ["\n[", a, "]\nAssistant:"]
    said = greedy(opened, 5)
    assert unasked.token_ids == said
    assert isinstance(asked, Answer)
    history: list[str | Frame | list[int]] = [*opened, list(said), QUESTION]
    assert asked.token_ids == greedy(history, 5)
    assert isinstance(second, FrameEvent)
    parts = [*history, list(asked.token_ids), "\n[", b]
    assert second.separator_probability == pytest.approx(separator_probability(parts), abs=1e-5)


def test_several_videos_cannot_decide_together_when_to_speak() -> None:
    with attach(LLAVA, VideoLLMOnline()) as attachment, pytest.raises(ValueError, match="batch is 2"):
        Session(attachment, batch=2)


# --- Flash-VStream


def test_the_memory_of_frames_is_681_tokens_and_stays_that() -> None:
    memory = VisualMemory(FlashVStream())
    generator = torch.Generator().manual_seed(0)
    for n in range(1, 40):
        memory.add(torch.randn((1, 64, 8), generator=generator))
        expected = 16 * min(n, 25) + min(n, 25) + 64 * (min(n, 3) + 1)
        assert memory.tokens().shape == (1, expected, 8)
    assert expected == 681 == FlashVStream().memory_tokens(64)


def test_alike_frames_share_a_centroid_and_the_last_frame_is_there_whole() -> None:
    policy = FlashVStream(temporal=2, abstract=2, key_frames=1, pool=2)
    memory = VisualMemory(policy)
    alike, other, last = (torch.full((1, 4, 8), value) for value in (1.0, 5.0, 9.0))
    for frame in (alike, alike + 0.1, other, alike + 0.2, last):
        memory.add(frame)
    tokens = memory.tokens()[0, :, 0]
    # three alike frames in one centroid, two others in the second; the heaviest's frame whole, then the last
    assert tokens.tolist() == pytest.approx([1.1, 7.0, 1.1, 1.1, 7.0, 7.0, *[1.1] * 4, *[9.0] * 4], abs=0.11)


def test_the_memories_of_a_batch_do_not_mix() -> None:
    policy = FlashVStream(temporal=3, abstract=3, key_frames=1, pool=2)
    made = torch.randn((2, 12, 4, 8), generator=torch.Generator().manual_seed(0))
    together, alone = VisualMemory(policy), [VisualMemory(policy), VisualMemory(policy)]
    for t in range(12):
        together.add(made[:, t])
        for item, memory in enumerate(alone):
            memory.add(made[item : item + 1, t])
    assert torch.equal(together.tokens(), torch.cat([memory.tokens() for memory in alone]))


@pytest.mark.parametrize(
    ("shown", "stand_in"), [((9.0, 9.0, 0.0), 9.0), ((0.0, 9.0, 9.0), 9.0), ((0.0, 0.0, 9.0), 0.0)]
)
def test_the_frame_nearest_to_a_centroid_stands_for_it(shown: tuple[float, ...], stand_in: float) -> None:
    memory = VisualMemory(FlashVStream(temporal=1, abstract=0, key_frames=1, pool=2))
    for value in shown:
        memory.add(torch.full((1, 2, 4), value))
    centroid = sum(shown) / 3
    assert memory.tokens()[0, :, 0].tolist() == [centroid, stand_in, stand_in, shown[-1], shown[-1]]


def test_a_question_prefills_the_memory_and_nothing_else() -> None:
    answer = only_answers(events(FlashVStream(), 4, [(9.0, "what?")]))[0]
    memory = VisualMemory(FlashVStream())
    for frame in frames(4):
        memory.add(embeds_of([frame]))
    prompt = torch.cat([memory.tokens(), embeds_of([QUESTION])], dim=1)
    with torch.no_grad():
        ref = LLAVA(inputs_embeds=prompt).logits[0, -1].argmax()
    assert answer.token_ids[0] == int(ref)
    assert answer.n_prompt == prompt.shape[1]


def test_an_empty_memory_has_no_answer() -> None:
    with attach(LLAVA, FlashVStream()) as attachment:
        session = Session(attachment)
        assert not any("eviction" in note for note in session.notes)
        assert any("trained" in note for note in session.notes)
        with pytest.raises(ValueError, match="visual memory is empty"):
            session.ask("what?")


# --- frames


def test_a_frame_of_another_size_is_named_or_resized() -> None:
    given = [*frames(2), *frames(1, (50, 60))]
    with attach(LLAVA, Full()) as attachment:
        session = Session(attachment, config=SHORT)
        with pytest.raises(FrameError, match="frame 2 is 50 x 60 pixels, the frames before it 40 x 60"):
            list(session.stream(given))
        assert session.n_frames == 2
        assert isinstance(session.ask("what?"), Answer)  # what came before can still be asked about
        with pytest.raises(FrameError, match="frame 2 is 50 x 60"):
            session.add_frame(given[2])
        resizing = Session(attachment, config=SHORT.model_copy(update={"resize": True}))
        assert len(list(resizing.stream(given))) == 3


@pytest.mark.parametrize(
    "frame", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8)]
)
def test_what_is_no_picture_is_refused(frame: np.ndarray) -> None:
    with attach(LLAVA, Full()) as attachment, pytest.raises(FrameError, match=r"allowed: \(H, W, 3\) of uint8"):
        Session(attachment).add_frame(frame)


def test_a_model_without_eyes_is_refused() -> None:
    with attach(tiny_model("tiny-llama"), Full()) as attachment, pytest.raises(ValueError, match="takes no frames"):
        Session(attachment)


def test_two_frames_make_a_step_but_never_across_a_question() -> None:
    with attach(tiny_model("tiny-qwen2.5-vl"), Full()) as attachment:
        told = list(Session(attachment, config=SHORT).stream(frames(6), [(2.5, "what?"), (9.0, "end?")]))
        seen = [event.index if isinstance(event, FrameEvent) else event.question for event in told]
        assert seen == [1, 2, "what?", 4, 5, "end?"]
        single = Session(attachment, config=SHORT)
        happened = [len(single.add_frame(frame)) for frame in frames(3)]
        assert happened == [0, 1, 0]
        answer = single.ask("what?")
    assert isinstance(answer, Answer)
    assert answer.n_frames == 3
    assert answer.token_ids == only_answers(told)[0].token_ids


@pytest.mark.parametrize("model", ["tiny-qwen2.5-vl", "tiny-smolvlm"])
@pytest.mark.parametrize("policy", ["rekv", "resv", "infinigenp", "videollm_online", "flash_vstream", "streamingllm"])
def test_every_family_takes_every_style(model: str, policy: str) -> None:
    with attach(tiny_model(model), POLICIES[policy]()) as attachment:
        session = Session(attachment, config=SHORT)
        asked = [a for a in only_answers(list(session.stream(frames(4), [(2.0, "what?")]))) if a.question]
    assert [answer.n_frames for answer in asked] == [3]


# --- the encoder's thread


def test_encoding_runs_ahead_in_order_and_no_further_than_told() -> None:
    done: list[int] = []

    def encode(i: int) -> tuple[int, str]:
        done.append(i)
        return i, threading.current_thread().name

    ahead = encode_ahead(encode, range(20), depth=2)
    assert next(ahead) == (0, "encode-ahead")
    until = time.monotonic() + 10
    while len(done) < 4 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.05)
    assert done == [0, 1, 2, 3]  # one taken, two waiting, one that waits for room
    assert [i for i, _ in ahead] == list(range(1, 20))


def test_an_error_of_the_encoder_comes_after_what_was_before_it() -> None:
    def encode(i: int) -> int:
        if i == 2:
            raise ValueError("frame 2")
        return i

    ahead = encode_ahead(encode, range(5), depth=1)
    assert [next(ahead), next(ahead)] == [0, 1]
    with pytest.raises(ValueError, match="frame 2"):
        next(ahead)


def test_a_stream_that_is_left_leaves_no_thread() -> None:
    ahead = encode_ahead(lambda i: i, iter(int, 1), depth=1)
    next(ahead)
    ahead.close()
    assert not any(thread.name == "encode-ahead" for thread in threading.enumerate())


# --- text and models


def test_bytes_are_text_where_there_is_no_tokenizer() -> None:
    codec = ByteText(256)
    assert codec.decode(codec.encode("Grüße, 世界")) == "Grüße, 世界"
    assert ByteText(100).encode("é") == [0xC3 % 100, 0xA9 % 100]
    assert codec.decode([0xFF]) == "\ufffd"
    assert isinstance(text_codec(LLAVA), ByteText)
    assert prompts_for(LLAVA, codec) == Prompts()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA with a tokenizer of its own, as a folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<|im_start|>", "<|im_end|>", "system", "user", "assistant", "what", "?", "You", "are", "a"]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"additional_special_tokens": ["<|im_start|>"], "unk_token": "<unk>", "eos_token": "<|im_end|>"}
    folder = tmp_path_factory.mktemp("model")
    PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(folder)
    tiny_model("tiny-llava", seed=3).save_pretrained(folder)
    return folder


def test_a_folder_brings_its_weights_its_tokenizer_and_its_words(saved: Path) -> None:
    model = load_model(str(saved))
    codec = text_codec(model)
    assert isinstance(codec, PretrainedText)
    assert codec.encode("what ?<|im_end|>") == [6, 7, 2]
    assert codec.decode([1, 6, 7, 2]) == "what?" or codec.decode([1, 6, 7, 2]) == "what ?"
    assert 2 in codec.end_ids
    assert prompts_for(model, codec) == PROMPTS["llava_onevision"]
    with attach(model, Full()) as attachment:
        session = Session(attachment, config=SHORT)
        (event,) = session.add_frame(frames(1)[0])
        assert isinstance(event, FrameEvent)
        assert event.n_tokens == 4 + len(codec.encode(PROMPTS["llava_onevision"].opening))


def test_a_model_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no model 'tiny-lava': give a folder, an id of the hub \(owner/name\), or"):
        load_model("tiny-lava")
    with pytest.raises(ValueError, match=r"model '.*' cannot be loaded"):
        load_model(str(tmp_path))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device is 'cuda'"):
            load_model("tiny-llava", device="cuda")


def test_an_architecture_that_is_not_supported_is_refused_before_its_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}')
    with pytest.raises(ValueError, match=r"of type 'gpt2'; supported are llama, .*qwen2_5_vl"):
        load_model(str(tmp_path))

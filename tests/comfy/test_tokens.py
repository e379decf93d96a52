"""Places of words among a prompt's embeddings, by the tokenizers that ComfyUI ships, and small ones for the others."""

import importlib
import io

import pytest
import torch

TEXT = "a photo of a red cat on an old bed, the cat sleeps"
CUT = 151644  # <|im_start|>, at the second of which Qwen-Image cuts its template


@pytest.fixture(scope="module")
def places(pack):
    return importlib.import_module(f"{pack.__name__}.nodes.adapter.tokens").places


@pytest.fixture(scope="module")
def small():
    """A small SentencePiece model, as the files of Wan (UMT5) and Lumina2 (Gemma) hold one."""
    sentencepiece = pytest.importorskip("sentencepiece")
    written = io.BytesIO()
    words = [*TEXT.split(), *(f"word{i}" for i in range(60))]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(words[i:] + words[:i]) for i in range(len(words))] * 3),
        model_writer=written,
        vocab_size=120,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return torch.frombuffer(bytearray(written.getvalue()), dtype=torch.uint8)


def made(family, small):
    """The family's tokenizer, and the tokenizers whose tokens it embeds, in order, each with the length of a cut."""
    encoders = importlib.import_module
    if family == "SD1.5":
        return encoders("comfy.sd1_clip").SD1Tokenizer(), {"l": 0}
    if family == "SDXL":
        return encoders("comfy.sdxl_clip").SDXLTokenizer(), {"l": 0}
    if family == "SD3":
        return encoders("comfy.text_encoders.sd3_clip").SD3Tokenizer(), {"l": 0, "t5xxl": 0}
    if family == "Flux":
        return encoders("comfy.text_encoders.flux").FluxTokenizer(), {"t5xxl": 0}
    if family == "PixArt":
        return encoders("comfy.text_encoders.pixart_t5").PixArtTokenizer(), {"t5xxl": 0}
    if family == "AuraFlow":
        return encoders("comfy.text_encoders.aura_t5").AuraT5Tokenizer(), {"pile_t5xl": 0}
    if family == "Qwen-Image":
        return encoders("comfy.text_encoders.qwen_image").QwenImageTokenizer(), {"qwen25_7b": None}
    if family == "Z-Image":
        return pytest.importorskip("comfy.text_encoders.z_image").ZImageTokenizer(), {"qwen3_4b": 0}
    if family == "Wan":
        tokenizer = encoders("comfy.text_encoders.wan").WanT5Tokenizer
        return tokenizer(tokenizer_data={"spiece_model": small}), {"umt5xxl": 0}
    tokenizer = encoders("comfy.text_encoders.lumina2").LuminaTokenizer
    return tokenizer(tokenizer_data={"spiece_model": small}), {"gemma2_2b": 0}


def cut_by_comfyui(stream, monkeypatch):
    """Tokens that Qwen-Image's own code cuts off."""
    qwen = importlib.import_module("comfy.text_encoders.qwen_image")
    sd1_clip = importlib.import_module("comfy.sd1_clip")

    def encoded(self, tokens):
        count = len(tokens["qwen25_7b"][0])
        return torch.zeros(1, count, 4), None, {"attention_mask": torch.ones(1, count)}

    monkeypatch.setattr(sd1_clip.SD1ClipModel, "encode_token_weights", encoded)
    model = object.__new__(qwen.QwenImageTEModel)
    out, _, _ = qwen.QwenImageTEModel.encode_token_weights(model, {"qwen25_7b": [stream]})
    return len(stream) - out.shape[1]


FAMILIES = ["SD1.5", "SDXL", "SD3", "Flux", "PixArt", "AuraFlow", "Qwen-Image", "Z-Image", "Wan", "Lumina2"]


@pytest.mark.parametrize("family", FAMILIES)
def test_places_are_those_of_the_word(family, places, small, monkeypatch):
    tokenizer, used = made(family, small)
    embedded: list[str] = []
    for name, cut in used.items():
        (stream,) = tokenizer.tokenize_with_weights(TEXT)[name]
        cut = cut_by_comfyui(stream, monkeypatch) if cut is None else cut
        own = getattr(tokenizer, name, None) or getattr(tokenizer, f"clip_{name}")
        embedded += [own.inv_vocab[entry[0]] for entry in stream[cut:]]

    def text(indices):
        return (
            "".join(embedded[i] for i in indices)
            .replace("</w>", " ")
            .replace("\u2581", " ")
            .replace("\u0120", " ")
            .split()
        )

    content, cat = places(tokenizer.tokenize_with_weights, TEXT, len(embedded), "cat")
    assert text(cat) == ["cat", "cat"] * len(used)
    assert "".join(text(content)) == TEXT.replace(" ", "") * len(used)
    _, phrase = places(tokenizer.tokenize_with_weights, TEXT, len(embedded), "old bed")
    assert text(phrase) == ["old", "bed"] * len(used)
    with pytest.raises(ValueError, match="'horse' is not in the text"):
        places(tokenizer.tokenize_with_weights, TEXT, len(embedded), "horse")


@pytest.mark.parametrize("family", ["SD1.5", "SD3", "Qwen-Image"])
def test_weights_and_parts_of_words(family, places, small, monkeypatch):
    tokenizer, _ = made(family, small)
    lengths = {"SD1.5": 77, "SD3": 154}
    text = "a concatenated (red cat:1.3) on a bed"

    def found(text, word):
        if family in lengths:
            return places(tokenizer.tokenize_with_weights, text, lengths[family], word)[1]
        (stream,) = tokenizer.tokenize_with_weights(text)["qwen25_7b"]
        count = len(stream) - cut_by_comfyui(stream, monkeypatch)
        return places(tokenizer.tokenize_with_weights, text, count, word)[1]

    weighted = found(text, "red cat")
    assert len(weighted) == (4 if family == "SD3" else 2)
    if family != "Qwen-Image":  # which reads weights as text
        assert weighted == found("a concatenated red cat on a bed", "red cat")
    assert found(text, "RED" if family == "SD1.5" else "red")


def test_long_prompts_of_several_parts(places):
    tokenizer, _ = made("SD1.5", None)
    text = "many " * 90 + "cat"
    (word,) = places(tokenizer.tokenize_with_weights, text, 154, "cat")[1]
    assert word == 77 + 1 + 90 - 75

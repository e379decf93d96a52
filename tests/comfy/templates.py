"""The example workflows in short: nodes in columns, columns in coloured groups, groups in two rows.

`draw_templates.py` makes the files in workflows/ of this. An input is a widget's value, or a link: the name of a node
with an @, and with .n for its output number n ("@model.2" is the third output of the node named model).
"""

from __future__ import annotations

from dataclasses import dataclass, field

PREFIX = "onrw_"
"""Of the names of the sample images in ComfyUI's input folder."""
PHOTO, PORTRAIT, DRAWING = f"{PREFIX}monument.jpg", f"{PREFIX}portrait.jpg", f"{PREFIX}drawing.png"
BLUE, GREEN, AMBER, VIOLET, GREY = "#7fb4dc", "#8fd08f", "#e0b95a", "#cfa0e0", "#b6bec8"
"""Loading, marking, attacking, sampling; the rest."""
# Heights that nodes have with their results in them, which a node that is less high grows to: an image, a card, a card
# with an image, a card with views.
PREVIEW, CARD, SAVED, VIEWS = 246, 362, 680, 715


@dataclass
class Node:
    """A node.

    Attributes:
        name: What links call it.
        kind: Its class.
        inputs: See the module.
        title: Shown; the class's own name if None.
        height: At least, in pixels: room for a picture or a card.
        width: At least, in pixels.
        muted: Not run, and not in the prompt.
    """

    name: str
    kind: str
    inputs: dict = field(default_factory=dict)
    title: str | None = None
    height: int = 0
    width: int = 280
    muted: bool = False


@dataclass
class Group:
    """A coloured group of columns of nodes."""

    title: str
    colour: str
    columns: list[list[Node]]


@dataclass
class Template:
    """A workflow.

    Attributes:
        name: Of its file, as users read it.
        note: Markdown; shown at the left.
        rows: Groups from left to right, in one or two rows.
    """

    name: str
    note: str
    rows: list[list[Group]]


def image(name: str = "image", file: str = PHOTO, title: str | None = None) -> Node:
    return Node(name, "LoadImage", {"image": file}, title, 360)


def save(source: str, prefix: str, title: str | None = None, height: int = 300) -> Node:
    return Node("save", "SaveImage", {"images": source, "filename_prefix": prefix}, title, height)


def preview(name: str, source: str, title: str, height: int = PREVIEW, width: int = 280) -> Node:
    return Node(name, "PreviewImage", {"images": source}, title, height, width)


def text(name: str, source: str, title: str) -> Node:
    return Node(name, "PreviewAny", {"source": source}, title, 110)


def marked_and_saved(source: str, text: str = "", prefix: str = "onrw/marked") -> Node:
    inputs = {"images": source, "text": text, "strength": "balanced", "quality": 90.0, "format": "PNG"}
    inputs |= {
        "filename_prefix": prefix,
        "preset": "fast",
        "public_label": "none",
        "file_quality": 95,
        "note": "",
        "size": 0,
    }
    return Node("save", "ONRW_SaveImage", inputs, height=SAVED, width=320)


ONE_BY_ONE = {"frames": "separate images"}


def embed(source: str, text: str = "Ann 5", height: int = VIEWS, **others: str) -> Node:
    inputs = {"image": source, "text": text, "strength": "balanced", "quality": 90.0, "preset": "fast"}
    inputs |= {"public_label": "none"}
    return Node(
        "embed", "ONRW_Embed", {**inputs, "size": 0, "seed": 0, **ONE_BY_ONE, **others}, height=height, width=420
    )


def read(
    source: str, name: str = "read", title: str | None = None, height: int = CARD, width: int = 340, **others: str
) -> Node:
    inputs = {"image": source, "target_fpr": 1e-6, **ONE_BY_ONE, "deep": False, **others}
    return Node(name, "ONRW_Read", inputs, title, height, width)


def generation(checkpoint: str, size: int, steps: int, cfg: float, latent: str = "EmptyLatentImage") -> list[Group]:
    """Text to image with stock nodes."""
    sampling = {"model": "@checkpoint", "seed": 5, "steps": steps, "cfg": cfg, "sampler_name": "euler"}
    sampling |= {"scheduler": "simple" if latent == "EmptySD3LatentImage" else "normal", "denoise": 1.0}
    sampling |= {"positive": "@prompt", "negative": "@negative", "latent_image": "@latent"}
    words = "a lighthouse on a cliff at sunset, photograph"
    return [
        Group(
            "1  Your model and prompt",
            BLUE,
            [
                [
                    Node("checkpoint", "CheckpointLoaderSimple", {"ckpt_name": checkpoint}, "Checkpoint"),
                    Node("prompt", "CLIPTextEncode", {"clip": "@checkpoint.1", "text": words}, "Prompt", 130),
                    Node("negative", "CLIPTextEncode", {"clip": "@checkpoint.1", "text": ""}, "Negative prompt", 90),
                    Node("latent", latent, {"width": size, "height": size, "batch_size": 1}, "Size"),
                ],
            ],
        ),
        Group(
            "2  Generate",
            VIOLET,
            [
                [
                    Node("sample", "KSampler", sampling, "Sample"),
                    Node("decode", "VAEDecode", {"samples": "@sample", "vae": "@checkpoint.2"}, "Decode"),
                ],
            ],
        ),
    ]


def own_model(name: str, checkpoint: str, size: int, steps: int, cfg: float, note: str, **latent: str) -> Template:
    """Text to image, marked by the user's own model."""
    model = {"model": "@checkpoint", "vae": "@checkpoint.2", "prompt": "@prompt"}
    return Template(
        name,
        note,
        [
            [
                *generation(checkpoint, size, steps, cfg, **latent),
                Group("3  Mark with your model", GREEN, [[embed("@decode", "", **model)]]),
                Group("4  Save and check", GREY, [[save("@embed", "onrw/generated", "Marked image"), read("@embed")]]),
            ],
        ],
    )


MESSAGE = Node("message", "ONRW_Message", {"kind": "random id", "value": "", "num_bits": "auto", "seed": 7})


def started() -> list[Node]:
    """Model, working size and message of the staged workflows."""
    inputs = {"image": "@image", "upscale_method": "lanczos", "width": 384, "height": 384, "crop": "center"}
    return [
        Node("model", "ONRW_LoadMini"),
        Node("scaled", "ImageScale", inputs, "Working size"),
        MESSAGE,
    ]


def prompts(words: str, word: str | None = None) -> list[Node]:
    """The prompts and the latent of an inversion; `word` is what the pseudo-mask covers."""
    inputs = {"clip": "@model.1", "text": words}
    named = Node("prompt", "ONRW_EncodePrompt", {**inputs, "word": word}, "Prompt", 180)
    return [
        Node("prompt", "CLIPTextEncode", inputs, "Prompt", 110) if word is None else named,
        Node("empty", "CLIPTextEncode", {"clip": "@model.1", "text": ""}, "Empty prompt", 110),
        Node("latent", "VAEEncode", {"pixels": "@scaled", "vae": "@model.2"}, "Encode"),
    ]


def by_stages(
    name: str, checkpoint: str, size: int, steps: int, cfg: float, start: float, latent: str, model: str
) -> Template:
    """Text to image with stock nodes, and the four stages from the sampler's LATENT on.

    `start` is a sigma above that of the last step: this step alone is replayed.
    """
    words = "a lighthouse on a cliff at sunset, photograph"
    schedule = {"model": "@model", "scheduler": "simple", "steps": steps, "denoise": 1.0}
    guided = {"model": "@model", "positive": "@prompt", "negative": "@empty", "cfg": cfg}
    sampled = {"noise": "@noise", "guider": "@guider", "sampler": "@euler", "sigmas": "@levels"}
    inverted, marked = inversion("fast", 1), optimise("fast", 40)
    inverted.inputs |= {"latent": "@sample", "start_sigma": start, "guidance": cfg}
    inverted.inputs |= {"noise": "@noise", "sampled_sigmas": "@levels"}
    marked.inputs |= {"tuning": "as preset"}
    return Template(
        name,
        f"""## 1 Choose your checkpoint and type a prompt
{model}

## 2 Run
The sampler's latent is marked as it is, without another round trip through the VAE. Its noise and sigmas are \
connected too: its own last step then takes the place of an inversion, and has no error.

**The sampler has to be euler**, and `guidance` of Null-Text Inversion its cfg.""",
        [
            [
                Group(
                    "Your model and prompt",
                    BLUE,
                    [
                        [
                            Node("model", "CheckpointLoaderSimple", {"ckpt_name": checkpoint}, "Checkpoint"),
                            Node("prompt", "CLIPTextEncode", {"clip": "@model.1", "text": words}, "Prompt", 130),
                            Node("empty", "CLIPTextEncode", {"clip": "@model.1", "text": ""}, "Negative prompt", 90),
                        ]
                    ],
                ),
                Group(
                    "Generate",
                    VIOLET,
                    [
                        [
                            Node("noise", "RandomNoise", {"noise_seed": 5}, "Noise"),
                            Node("euler", "KSamplerSelect", {"sampler_name": "euler"}, "Euler"),
                            Node("levels", "BasicScheduler", schedule, "Sigmas"),
                            Node("guider", "CFGGuider", guided, "Guider"),
                        ],
                        [
                            Node("size", latent, {"width": size, "height": size, "batch_size": 1}, "Size"),
                            Node("sample", "SamplerCustomAdvanced", {**sampled, "latent_image": "@size"}, "Sample"),
                            Node("image", "VAEDecode", {"samples": "@sample", "vae": "@model.2"}, "Decode"),
                        ],
                    ],
                ),
                Group("1  Invert", GREEN, [[inverted]]),
            ],
            [
                Group("2  Optimise", GREEN, [[MESSAGE], [marked]]),
                Group("3  Denoise", AMBER, [[denoise()]]),
                Group(
                    "4  Save and check",
                    GREY,
                    [
                        [preview("unmarked", "@image", "Unmarked image", 420)],
                        [save("@denoise", "onrw/stages", "Marked image", 420)],
                        [read("@denoise", height=420, width=420, message="@message")],
                    ],
                ),
            ],
        ],
    )


AREA = Node("area", "MaskToImage", {"mask": "@denoise.1"}, "Area as image", width=240)
KEPT = {"inversion": "@inversion", "filename_prefix": "onrw/inversion"}
LOADED = Node(
    "loaded",
    "ONRW_LoadInversion",
    {"file": "onrw/inversion_00001_.safetensors [output]"},
    "A saved inversion (unmute)",
    muted=True,
)


def attack(name: str, source: str, kind: str, strength: float, title: str) -> Node:
    inputs = {"image": source, "attack": kind, "default_strength": False, "strength": strength, "seed": 0}
    return Node(name, "ONRW_Attack", inputs, title)


def noted(node: Node) -> Node:
    """A Save Image node with a note for the registry, a key, and room for the cards of three images."""
    node.width, node.height = 420, 900
    node.inputs |= {"note": "samples", "key": "@key"}
    return node


def inversion(preset: str, steps: int) -> Node:
    inputs = {"model": "@model", "positive": "@prompt", "negative": "@empty", "latent": "@latent", "preset": preset}
    own = {"paper": (1.0, 4.5), "fast": (0.2, 1.0)}[preset]
    inputs |= {"schedule": "custom", "steps": steps, "start_sigma": own[0], "guidance": own[1]}
    inputs |= {"method": "as preset", "inner_steps": 5, "convention": "source", "vae": "@model.2"}
    return Node("inversion", "ONRW_NullTextInversion", inputs)


def optimise(preset: str, iterations: int) -> Node:
    inputs = {"model": "@model", "vae": "@model.2", "inversion": "@inversion", "image": "@image"}
    inputs |= {"message": "@message", "preset": preset, "strength": "balanced", "quality": 90.0, "target_psnr": 0.0}
    inputs |= {"tuning": "custom", "iterations": iterations, "attacks": 3, "message_weight": 100.0}
    inputs |= {"image_weight": 20.0, "attention_weight": 80.0 if preset == "paper" else 0.0, "seed": 1, "mix": "all"}
    return Node("optimise", "ONRW_OptimizeNoise", inputs)


def denoise() -> Node:
    inputs = {"model": "@model", "vae": "@model.2", "watermark": "@optimise", "image": "@image"}
    inputs |= {"composition": "as optimised", "strength": "as optimised", "quality": 90.0, "target_psnr": 0.0}
    inputs |= {"pseudo_mask": "as optimised", "attention": "as optimised"}
    return Node("denoise", "ONRW_ConstrainedDenoise", inputs)


def guider(branch: str) -> Node:
    inputs = {"model": "@model", "record": "@optimise", "branch": branch}
    return Node(f"guider_{branch}", "ONRW_Guider", inputs, f"Guider, {branch}")


def decoded(branch: str) -> Node:
    inputs = {"samples": f"@sampled_{branch}", "vae": "@model.2"}
    return Node(f"decoded_{branch}", "VAEDecode", inputs, f"Decode {branch}")


def sampler(branch: str) -> Node:
    names = ("guider", "noise", "sigmas", "latent_image")
    inputs = {name: f"@guider_{branch}.{number}" for number, name in enumerate(names)} | {"sampler": "@euler"}
    return Node(f"sampled_{branch}", "SamplerCustomAdvanced", inputs, f"Sample {branch}")


AUDITED = {"image": "@embed", "extractor": "@decoder", "suite": "onrw12", "seed": 0}

TEMPLATES = [
    Template(
        "Save with one node",
        """## 1 Choose an image
Any image, or the output of your own graph: put the node where Save Image was.

## 2 Type a text
Up to 10 letters, such as your name. Leave it empty for an id of its own for each image.

## 3 Run
The image looks the same, and Read Watermark finds the text again, also after crops, \
screenshots and JPEG.

**Keep a copy of the key**: `user/__onrw_keys/default.key`. Without it nobody can read your watermarks.""",
        [
            [
                Group("1  Your image", BLUE, [[image()]]),
                Group("2  Mark and save", GREEN, [[marked_and_saved("@image", "Ann 5")]]),
            ]
        ],
    ),
    Template(
        "Mark a photo",
        """## 1 Choose an image
## 2 Type a text
Set how strong: *subtle* for drawings and skies, *balanced*, or *strong*.

## 3 Run
Move the mouse over the picture in the node to compare before and after; beside it is the \
change, ten times stronger.""",
        [
            [
                Group("1  Your image", BLUE, [[image(file=PORTRAIT)]]),
                Group("2  Mark", GREEN, [[embed("@image")]]),
                Group("3  Save and check", GREY, [[save("@embed", "onrw/photo", "Marked photo"), read("@embed")]]),
            ]
        ],
    ),
    own_model(
        "Text to image - SD 1.5",
        "v1-5-pruned-emaonly-fp16.safetensors",
        512,
        20,
        7.0,
        """## 1 Choose your checkpoint and type a prompt
Any SD 1.5 checkpoint, with your LoRAs.

## 2 Run
The image is marked through the same model and prompt that drew it. Empty text: an id of its own for each image.

No time? *Any model - embedded watermark* does without your model.""",
    ),
    own_model(
        "Text to image - SDXL",
        "sd_xl_base_1.0.safetensors",
        1024,
        25,
        6.0,
        """## 1 Choose your checkpoint and type a prompt
Any SDXL checkpoint, with your LoRAs.

## 2 Run
The image is marked through the same model and prompt that drew it, and keeps its size.""",
    ),
    own_model(
        "Text to image - Flux",
        "flux1-schnell-fp8.safetensors",
        1024,
        4,
        1.0,
        """## 1 Choose your checkpoint and type a prompt
Flux, SD 3 and other flow models.

## 2 Run
The image is marked through the same model and prompt that drew it. If memory is short, use *Any model - embedded \
watermark*: the small embedded model marks the finished image.""",
        latent="EmptySD3LatentImage",
    ),
    by_stages(
        "Text to image by stages - SD 1.5",
        "v1-5-pruned-emaonly-fp16.safetensors",
        512,
        20,
        7.0,
        0.3,
        "EmptyLatentImage",
        "Any SD 1.5, SD 2 or SDXL checkpoint, with your LoRAs.",
    ),
    by_stages(
        "Text to image by stages - Flux",
        "flux1-schnell-fp8.safetensors",
        1024,
        4,
        1.0,
        0.4,
        "EmptySD3LatentImage",
        "Flux, SD 3 and other flow models.",
    ),
    Template(
        "Any model - embedded watermark",
        """## 1 Draw with any model
Flux, SD, video frames, another program: only the finished image counts.

## 2 Run
Save Image (Invisible Watermark) takes the place of Save Image. It marks with the small embedded model: nothing is \
downloaded.

Faster: set `preset` to *quick*.""",
        [
            [
                *generation("v1-5-pruned-emaonly-fp16.safetensors", 512, 20, 7.0),
                Group("3  Mark and save", GREEN, [[marked_and_saved("@decode", prefix="onrw/any model")]]),
            ],
        ],
    ),
    Template(
        "Read and verify",
        """## 1 Choose an image
Here the image is marked first, then turned by 25 degrees and saved as JPEG, as somebody might do who passes it on.

## 2 Run
Read Watermark needs the image alone. In the unmarked image nothing is found.

**To check an image of yours**, connect Load Image to Read Watermark.""",
        [
            [
                Group("1  Your image", BLUE, [[image(file=DRAWING)]]),
                Group("2  Mark", GREEN, [[embed("@image", "Ann 5", strength="strong")]]),
                Group(
                    "3  What happens to it",
                    AMBER,
                    [
                        [
                            attack("turn", "@embed", "rotation", 25.0, "Turn by 25 degrees"),
                            attack("jpeg", "@turn", "jpeg", 60.0, "JPEG"),
                            preview("received", "@jpeg", "As received", 300),
                        ],
                    ],
                ),
                Group(
                    "4  Read",
                    GREY,
                    [
                        [
                            read("@jpeg", title="Read the received image"),
                            read("@image", "unmarked", "Read the unmarked image"),
                        ],
                        [
                            preview("straight", "@read.6", "Set straight", 280),
                            Node("detect", "ONRW_Detect", {"image": "@jpeg"}, height=280, width=300),
                        ],
                    ],
                ),
            ],
        ],
    ),
    Template(
        "Four stages",
        """## The method, stage by stage
1 **Invert**: find the noise that draws your image.

2 **Optimise** that noise until the message is read after random attacks.

3 **Denoise** it and add the change to your image.

4 **Read** the message.

## Run
To be short on a CPU, this runs at 384 px and with few steps. For real work set `schedule` and `tuning` to \
*as preset*, and the working size to 512 px.""",
        [
            [
                Group("Your image", BLUE, [[image(file=PORTRAIT)], started()]),
                Group(
                    "1  Invert",
                    VIOLET,
                    [
                        prompts("a portrait of a woman in an orange suit", "woman"),
                        [inversion("paper", 3), Node("kept", "ONRW_SaveInversion", KEPT)],
                    ],
                ),
                Group("2  Optimise", GREEN, [[optimise("paper", 15)]]),
            ],
            [
                Group(
                    "Results of 1 and 2",
                    GREY,
                    [
                        [preview("retraced", "@inversion.3", "Retraced image", 300, 240)],
                        [preview("curves", "@optimise.2", "Loss and accuracy", 300, 240)],
                    ],
                ),
                Group(
                    "3  Denoise",
                    AMBER,
                    [
                        [
                            denoise(),
                        ],
                        [save("@denoise", "onrw/stages", "Marked image")],
                        [preview("change", "@denoise.3", "Change x 10", width=240), AREA],
                        [preview("mask", "@area", "Pseudo-mask", width=240)],
                    ],
                ),
                Group("4  Read", GREEN, [[read("@denoise", height=330, width=420, message="@message")]]),
            ],
        ],
    ),
    Template(
        "Sampler graph",
        """## Your own sampler nodes for the last stage
Watermark Guider gives guider, noise, sigmas and latent for SamplerCustomAdvanced, once with the watermark and once \
without.

Compose Watermark adds the difference to the image at its full size.

## Run
To be short on a CPU, this runs at 384 px and with few steps.

A saved inversion (muted) can take the place of the inversion.""",
        [
            [
                Group("Your image", BLUE, [[image()], started()]),
                Group(
                    "1  Invert", VIOLET, [prompts("a monument behind cherry blossom"), [inversion("fast", 2), LOADED]]
                ),
                Group("2  Optimise", GREEN, [[optimise("fast", 20)]]),
            ],
            [
                Group(
                    "3  Sample",
                    AMBER,
                    [
                        [
                            guider("marked"),
                            guider("original"),
                            Node("euler", "KSamplerSelect", {"sampler_name": "euler"}, "Euler"),
                        ],
                        [sampler("marked"), sampler("original")],
                        [decoded("marked"), decoded("original")],
                    ],
                ),
                Group(
                    "4  Compose and read",
                    GREY,
                    [
                        [
                            Node(
                                "compose",
                                "ONRW_Compose",
                                {
                                    "original": "@image",
                                    "decoded_marked": "@decoded_marked",
                                    "decoded_original": "@decoded_original",
                                    "mode": "residual",
                                    "strength": "as optimised",
                                    "quality": 90.0,
                                    "target_psnr": 0.0,
                                    "luma_only": True,
                                    "watermark": "@optimise",
                                },
                            )
                        ],
                        [save("@compose", "onrw/sampled", "Marked image")],
                        [read("@compose", height=330, width=420, message="@message")],
                    ],
                ),
            ],
        ],
    ),
    Template(
        "Folder of images",
        """## 1 Put your images into a folder
Make a folder inside ComfyUI's `input` folder and type its name; empty is the input folder itself. Here: the sample \
images of this pack.

## 2 Run
Each image gets an id of its own. The note is kept with \
the ids on this machine, and Read Watermark shows it.

A key of its own for each client: give it another name.""",
        [
            [
                Group(
                    "1  Your folder",
                    BLUE,
                    [
                        [
                            Node("folder", "ONRW_LoadFolder", {"folder": "", "pattern": "onrw_*"}),
                            Node("key", "ONRW_Key", {"source": "file", "name": "default", "create": True}),
                        ]
                    ],
                ),
                Group("2  Mark and save", GREEN, [[noted(marked_and_saved("@folder", prefix="onrw/folder"))]]),
                Group("3  Check", GREY, [[read("@save", key="@key", height=520)]]),
            ]
        ],
    ),
    Template(
        "Video frames",
        """## 1 Choose a video
Here: twelve frames over the first sample image.

## 2 Type a text
## 3 Run
The first frame takes longest. Sound and frame rate are kept.

*frames* is *one clip*: one watermark, which moves with the scene and survives video compression.""",
        [
            [
                Group(
                    "1  Your video",
                    BLUE,
                    [
                        [
                            Node("video", "LoadVideo", {"file": f"{PREFIX}clip.mp4"}, height=340),
                            Node("parts", "GetVideoComponents", {"video": "@video"}),
                        ]
                    ],
                ),
                Group("2  Mark the frames", GREEN, [[embed("@parts", preset="quick", frames="one clip")]]),
                Group(
                    "3  Save and check",
                    GREY,
                    [
                        [
                            Node("made", "CreateVideo", {"images": "@embed", "fps": "@parts.2", "audio": "@parts.1"}),
                            Node(
                                "save",
                                "SaveVideo",
                                {
                                    "video": "@made",
                                    "filename_prefix": "onrw/video",
                                    "format": "auto",
                                    "codec": "auto",
                                },
                                height=240,
                            ),
                            read("@embed", frames="one clip"),
                        ]
                    ],
                ),
            ]
        ],
    ),
    Template(
        "Audit a watermark",
        """## 1 Choose an image
## 2 Run
The image is marked, attacked in twelve ways (crops, rotation, JPEG, blur, noise, ...), and read after each.

Green bars: nearly all bits survive. Compare *subtle* and *strong*, another image, or another decoder.""",
        [
            [
                Group(
                    "1  Your image",
                    BLUE,
                    [
                        [
                            image(),
                            Node("decoder", "ONRW_LoadExtractor", {"extractor": "keyed", "allow_torchscript": False}),
                        ]
                    ],
                ),
                Group("2  Mark", GREEN, [[embed("@image", "Ann 5", extractor="@decoder")]]),
                Group(
                    "3  Audit",
                    AMBER,
                    [
                        [Node("audit", "ONRW_Audit", AUDITED, height=420)],
                        [
                            Node("chart", "PreviewImage", {"images": "@audit"}, "Chart", 420),
                            text("table", "@audit.1", "Table"),
                        ],
                    ],
                ),
            ]
        ],
    ),
]

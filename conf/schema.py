"""Every node a user may write, as plain dataclasses (standard library only).

A YAML file names its dataclass in its defaults list (`gptq_schema`); Hydra then refuses unknown keys and wrong
types. A slot or scheme is a tagged union: the dataclass itself is the tag, and registries are keyed by it.
Not frozen, because Hydra's composition fails on frozen dataclasses; nothing mutates them after composition.
Longer than 400 lines, because this is the whole input language and a reader looks for a node in one place.
"""

from dataclasses import dataclass, field
from typing import Any, Optional

MISSING: Any = "???"  # OmegaConf's marker for "must be given"


# --- model -----------------------------------------------------------------------------------------------------------


@dataclass(unsafe_hash=True)
class ShapeConf:
    """Sizes of a model, named as in a Hugging Face config.json; enough for an exact plan without downloading.

    `extra_parameters` counts 16-bit parameters outside the language model (vision tower and projector). Hashable,
    because what is summed from sizes is remembered by them.
    """

    hidden_size: int = MISSING
    num_hidden_layers: int = MISSING
    vocab_size: int = MISSING
    max_position_embeddings: int = MISSING
    torch_dtype: str = "bfloat16"
    tie_word_embeddings: bool = False
    intermediate_size: Optional[int] = None
    num_attention_heads: Optional[int] = None
    num_key_value_heads: Optional[int] = None
    head_dim: Optional[int] = None
    num_experts: Optional[int] = None
    num_experts_per_tok: Optional[int] = None
    moe_intermediate_size: Optional[int] = None
    num_shared_experts: Optional[int] = None
    first_dense_layers: int = 0
    state_size: Optional[int] = None
    conv_kernel: Optional[int] = None
    time_step_rank: Optional[int] = None
    extra_parameters: int = 0


@dataclass
class ModelConf:
    """A checkpoint. `repo` is a hub id, a local directory, or `zoo:<name>` for a model shipped with the project.

    `architecture` and `shape` may be null for a local directory: its config.json says them.
    """

    name: str = MISSING
    repo: str = MISSING
    revision: Optional[str] = None
    tokenizer: Optional[str] = None
    architecture: Optional[str] = None
    trust_remote_code: bool = False
    shape: Optional[ShapeConf] = None


# --- slots, ordered by scope -----------------------------------------------------------------------------------------


@dataclass
class RotateConf:
    """Slot rotate (scope: model)."""


@dataclass
class NoRotate(RotateConf):
    """The residual stream stays as it is."""


@dataclass
class HadamardRotate(RotateConf):
    """QuaRot's rotations by Hadamard matrices.

    residual: of the residual stream. heads: of each value head. Both fold into the weights. intermediate: of inputs
    that no fold reaches (down_proj's), where slot incohere gives the linear no basis; needs an online transform.
    """

    residual: bool = True
    heads: bool = True
    intermediate: bool = True


@dataclass
class RandomRotate(RotateConf):
    """The same folds by matrices that are uniform over all orthogonal ones, for sizes without a Hadamard matrix."""

    residual: bool = True
    heads: bool = True


@dataclass
class ScaleConf:
    """Slot scale (scope: linear group)."""


@dataclass
class NoScale(ScaleConf):
    """Input channels stay as they are."""


@dataclass
class AwqScale(ScaleConf):
    """AWQ's searched channel scales, alpha in {0, 1/grid, ...}.

    num_windows: of the calibration, evenly spaced, on which outputs of modules that hold several linears are compared;
    16 of 2048 tokens are about as many as the original takes (50 to 60 of 512).
    """

    grid: int = 20
    num_windows: int = 16
    gqa: str = "mean"  # fold v -> o under grouped-query attention: mean | max | skip


@dataclass
class SmoothScale(ScaleConf):
    """SmoothQuant's closed form with exponent alpha."""

    alpha: float = 0.5


@dataclass
class LearnedScale(ScaleConf):
    """OmniQuant's learnable equivalent transformation; trained by slot tune.

    init: where a scale starts, smooth (SmoothQuant's closed form with exponent alpha) or log (a / log2(2 + a) with
    a = max|x|).
    """

    alpha: float = 0.5
    init: str = "smooth"  # smooth | log
    learning_rate: float = 5e-3


@dataclass
class IncohereConf:
    """Slot incohere (scope: one linear)."""


@dataclass
class NoIncohere(IncohereConf):
    """The linear keeps its basis."""


@dataclass
class KroneckerIncohere(IncohereConf):
    """QuIP's two-factor orthogonals with permutations, after its diagonal rescale."""

    rescale: bool = True
    blocks: bool = False
    trace_damping: float = 0.01


@dataclass
class HadamardIncohere(IncohereConf):
    """QuIP#'s randomised Hadamard. rescale: QuIP's, before it. sides: with `input`, outputs stay as they are."""

    rescale: bool = False
    sides: str = "both"  # both | input


@dataclass
class KeepConf:
    """Slot keep (scope: one linear): what stays at more bits."""


@dataclass
class NoKeep(KeepConf):
    """Everything gets the scheme's bits."""


@dataclass
class ColumnsKeep(KeepConf):
    """OWQ: as many of the most sensitive input columns stay in 16 bits as `extra_bits` a weight pay for.

    damping: fraction of the mean diagonal added to the kept columns' Hessian where they take up the others' errors.
    """

    extra_bits: float = 0.01
    damping: float = 0.01


@dataclass
class MaskKeep(KeepConf):
    """PB-LLM: the most salient entries are kept at `bits`, the rest is binarised.

    fraction: share of the salient entries; null is the one whose mean is the scheme's bits, the mask not counted.
    damping: fraction of the mean diagonal added to the Hessian that saliency is taken from.
    """

    fraction: Optional[float] = None
    bits: int = 8
    saliency: str = "hessian"  # hessian | magnitude
    damping: float = 0.01


@dataclass
class ClipConf:
    """Slot clip (scope: one linear): how the grid is fitted."""


@dataclass
class MinmaxClip(ClipConf):
    """The range of each row or group, zero always inside."""


@dataclass
class MseClip(ClipConf):
    """The range shrunk in `steps` steps of 1/100; the smallest sum |error|^norm wins."""

    steps: int = 80
    norm: float = 2.4


@dataclass
class SearchClip(ClipConf):
    """AWQ's clip search on sampled inputs."""

    grid: int = 20
    max_shrink: float = 0.5
    num_tokens: int = 512
    query_key: bool = False
    symmetric: bool = True


@dataclass
class RmsClip(ClipConf):
    """QuIP's grid: one scale for the matrix, `constant` x RMS; searched by proxy loss when `candidates` is given.

    constant: null is QuIP's 2.4, and for a codebook of vectors (whose unit it is times the RMS) QuIP#'s.
    """

    constant: Optional[float] = None
    candidates: list[float] = field(default_factory=list)


@dataclass
class LearnedClip(ClipConf):
    """OmniQuant's learnable weight clipping: a factor for each end of each range, trained by slot tune.

    form: the factor is the sigmoid of what is trained, or that itself (direct), kept within 0 and 1. init: what is
    trained, at the start. learning_rate: null is one over the number of steps.
    """

    form: str = "sigmoid"  # sigmoid | direct
    init: float = 4.0
    learning_rate: Optional[float] = 1e-2


@dataclass
class TuneConf:
    """Slot tune (scope: block)."""


@dataclass
class NoTune(TuneConf):
    """Nothing is trained."""


@dataclass
class BlockTune(TuneConf):
    """Block-wise training against the full-precision block; `learns` names what is trained.

    Its length is given in epochs over the calibration windows or in iterations (steps), the other is 0. batch_size: in
    windows. optimizer: adamw at constant rates, or signsgd with linear decay. learning_rate: of rounding, null is one
    over the number of steps; clip and scale have their own. aug_loss: added is the mean squared difference from what
    the full-precision block makes of the quantized blocks' outputs.
    """

    learns: list[str] = field(default_factory=list)  # clip, scale, rounding
    epochs: int = 20
    iterations: int = 0
    batch_size: int = 1
    optimizer: str = "adamw"  # adamw | signsgd
    learning_rate: Optional[float] = None
    aug_loss: bool = False
    loss: str = "mse"  # mse | mse_cosine


@dataclass
class RoundConf:
    """Slot round (scope: one linear)."""


@dataclass
class NoRound(RoundConf):
    """Weights are not rounded: the 16-bit baseline."""


@dataclass
class NearestRound(RoundConf):
    """Round half to even, no data."""


@dataclass
class GptqRound(RoundConf):
    """GPTQ, Frantar et al. 2023, algorithm 1.

    damping: fraction of the mean diagonal of H added to it. act_order: columns by descending diag(H).
    static_groups: group grids fixed before the first column, so that groups stay contiguous under act_order.
    on_failure: fail, or diagonal (round to nearest for that linear, cell degraded).
    """

    damping: float = 0.01
    act_order: bool = True
    static_groups: bool = True
    block_size: int = 128
    on_failure: str = "fail"


@dataclass
class LdlqRound(RoundConf):
    """QuIP's LDLQ: the same recursion in reverse column order, with greedy passes after it."""

    damping: float = 0.01
    greedy_passes: int = 1
    block_size: int = 128
    on_failure: str = "fail"


@dataclass
class GptaqRound(RoundConf):
    """GPTAQ: GPTQ with an asymmetric target from the full-precision stream."""

    damping: float = 0.01
    act_order: bool = True
    static_groups: bool = True
    block_size: int = 128
    alpha: float = 0.25
    on_failure: str = "fail"


@dataclass
class HqqRound(RoundConf):
    """HQQ: half-quadratic fit of a real-valued zero point; no data."""

    iterations: int = 20
    beta: float = 10.0
    norm: float = 0.7


@dataclass
class MethodConf:
    """A composition of stages. `published` lists the overrides of the method's own recipe (lane=published), and
    `published_at` those it has for some bits beside them, by scheme.bits.

    inputs: what a block's statistics are taken on, its inputs as the quantized blocks before it make them, or as the
    original ones do. skip: linears of a block that keep their bits, by the ends of their names (x_proj, dt_proj).
    """

    name: str = MISSING
    category: str = MISSING  # baseline | compensation | rotation | salience | optimization | combination
    published: list[str] = field(default_factory=list)
    published_at: dict[str, list[str]] = field(default_factory=dict)
    inputs: str = "quantized"  # quantized | original
    skip: list[str] = field(default_factory=list)
    rotate: RotateConf = field(default_factory=NoRotate)
    scale: ScaleConf = field(default_factory=NoScale)
    incohere: IncohereConf = field(default_factory=NoIncohere)
    keep: KeepConf = field(default_factory=NoKeep)
    clip: ClipConf = field(default_factory=MinmaxClip)
    tune: TuneConf = field(default_factory=NoTune)
    round: RoundConf = field(default_factory=NoRound)


# --- scheme ----------------------------------------------------------------------------------------------------------


@dataclass
class SchemeConf:
    """A number format. Every scheme has `bits` and `group_size` (null: one group per output row)."""

    bits: int = MISSING
    group_size: Optional[int] = None


@dataclass
class FloatScheme(SchemeConf):
    """The checkpoint's own 16-bit floats."""

    bits: int = 16


@dataclass
class UniformScheme(SchemeConf):
    """Integer codes with a scale and an integer zero point for each row or group.

    symmetric: zero point fixed at 2^(bits-1). scale_dtype: what the scale is stored in; codes are chosen for the
    stored scale.
    """

    symmetric: bool = False
    scale_dtype: str = "float16"  # float16 | float32


@dataclass
class RealZeroScheme(SchemeConf):
    """Integer codes with a scale and a real-valued zero point, both float16 (HQQ)."""


@dataclass
class VectorCodebookScheme(SchemeConf):
    """Vectors of weights coded together (QuIP#'s E8P: 16 bits for 8 weights)."""

    codebook: str = "e8p"


@dataclass
class MixedScheme(SchemeConf):
    """Entries of one matrix at different bits (slot keep says which); `bits` is their nominal average."""


# --- data ------------------------------------------------------------------------------------------------------------


@dataclass
class CalibrationConf:
    """Where calibration tokens come from.

    source: c4 (random crops of long documents), c4_short (up to num_sequences documents no longer than sequence_length,
    joined and cut: AWQ's), wikitext2 and text (random crops of one stream), tokens (an int npy
    [num_sequences, sequence_length], taken as it is), images (conversations of an image, a question and its answer,
    from a folder as workers/image_questions.py says; for models that see). path: a local file in the same layout; null
    means the hub (`zoo:<file>`: a file shipped with the project). prompt: of images, Jinja over the columns of a
    question; null is LLaVA-1.5's. experts: what becomes of an expert that fewer tokens reach than it
    has inputs, which is degraded: blend (its Hessian with that of all tokens, as many of these as it has inputs),
    nearest (its inputs are taken to be white, so that rounding is to nearest) or own (what it has). all: every token
    goes through every expert as statistics are taken, and none lacks any.
    """

    name: str = MISSING
    source: str = MISSING
    path: Optional[str] = None
    num_sequences: int = 128
    sequence_length: int = 2048
    prompt: Optional[str] = None
    experts: str = "blend"  # blend | nearest | own | all


@dataclass
class TextConf:
    """One text to score. source: wikitext2 | c4 | c4_new | text | tokens (an int npy, 1-D)."""

    source: str = MISSING
    path: Optional[str] = None


@dataclass
class TaskFileConf:
    """Items of a benchmark task in a JSON-lines file; workers/task_files.py says how they are laid out.

    prompt: Jinja over the columns of an item; null shows `query` or `context` as it is. score: for a folder of
    questions about images (workers/image_questions.py), what an answer is worth: exact_match | option_letter |
    vqa_accuracy | yes_no.
    """

    path: Optional[str] = None
    prompt: Optional[str] = None
    score: Optional[str] = None


@dataclass
class SuiteConf:
    """What a checkpoint is scored on. `perplexity` maps a metric's task name to its text.

    dtype: the engine's compute dtype; auto is the checkpoint's own. tasks: names, looked up in `task_files`, then among
    those of workers/image_benchmarks.py, in the folder `task_path`, among those of lm-evaluation-harness.
    averages: name -> the metrics (<task>.<metric>) whose mean it is; each is stored by itself, so an average is a view
    and no part of a cell.
    """

    name: str = MISSING
    path: Optional[str] = None
    sequence_length: int = 2048
    dtype: str = "auto"  # auto | float32 | bfloat16 | float16
    perplexity: dict[str, TextConf] = field(default_factory=dict)
    tasks: list[str] = field(default_factory=list)
    task_path: Optional[str] = None
    task_files: dict[str, TaskFileConf] = field(default_factory=dict)
    limit: Optional[int] = None
    averages: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class LaneConf:
    """unified: every method gets the same calibration tokens. published: each method's own recipe."""

    name: str = MISSING
    published: bool = False


@dataclass
class NumericsConf:
    """What may change the numbers of quantization beside its inputs. device auto: cuda where there is one."""

    dtype: str = "float32"  # compute dtype of the calibration forward passes
    device: str = "auto"  # auto | cpu | cuda


# --- execution: never part of a key ----------------------------------------------------------------------------------


@dataclass
class NodeConf:
    """One kind of node. Rates are declared, for estimates: flops in 1/s for dense 16-bit, bandwidth in bytes/s, of one
    GPU; of the whole node where it has none.
    """

    count: int = 1
    num_gpus: int = 0
    gpu_memory_gib: float = 0.0
    num_cpus: int = MISSING
    memory_gib: float = MISSING
    flops: float = MISSING
    bandwidth: float = MISSING


@dataclass
class ClusterConf:
    """Where cells run. nodes null: what Ray reports of this machine (or of `address`).

    secrets: environment variable -> absolute path of the file that holds its value on each node
    (HF_TOKEN: /run/secrets/hf_token). Values themselves never stand in a configuration.

    statistics_gib: what the storage may hold of calibration statistics that cells have in common, in GiB; 0: each cell
    computes its own.
    """

    name: str = MISSING
    address: Optional[str] = None
    storage: str = "results/storage"
    nodes: Optional[list[NodeConf]] = None
    idle_seconds: float = 30.0
    quantize_timeout_seconds: float = 86400.0
    evaluate_timeout_seconds: float = 86400.0
    secrets: dict[str, str] = field(default_factory=dict)
    statistics_gib: float = 8.0


@dataclass
class TrackingConf:
    """Where MLflow's view lives. uri null: an SQLite file and a directory under results/mlflow."""

    name: str = MISSING
    uri: Optional[str] = None
    experiment: str = "ptq-bench"
    upload_checkpoints: bool = False


# --- roots -----------------------------------------------------------------------------------------------------------


@dataclass
class CellConf:
    """One point of the grid: identity, nothing else."""

    model: ModelConf
    method: MethodConf
    scheme: SchemeConf
    calibration: CalibrationConf
    suite: SuiteConf
    lane: LaneConf
    numerics: NumericsConf
    engine: str
    seed: int


@dataclass
class RootConf:
    """What Hydra composes: the fields of a cell, the axes over them, and where it all runs.

    axes: override key -> values. exclude: each entry maps override keys to the values that are left out together.
    settings: each entry maps override keys to values in the same way, and `set` to a list of overrides that hold there;
    a published recipe and the command line win over them.
    """

    name: str = MISSING
    model: ModelConf = MISSING
    method: MethodConf = MISSING
    scheme: SchemeConf = MISSING
    calibration: CalibrationConf = MISSING
    suite: SuiteConf = MISSING
    lane: LaneConf = MISSING
    numerics: NumericsConf = field(default_factory=NumericsConf)
    engine: str = "auto"  # auto | vllm | transformers
    seed: int = 0
    axes: dict[str, list[Any]] = field(default_factory=dict)
    exclude: list[dict[str, Any]] = field(default_factory=list)
    settings: list[dict[str, Any]] = field(default_factory=list)
    cluster: ClusterConf = MISSING
    tracking: TrackingConf = MISSING

"""Files of the configuration that cannot be read or meant; they lie in a copy of conf/."""

from tests.orchestrator.bad_input.case import Case, bad

MODEL = "defaults: [model_schema, _self_]\nname: x\nrepo: ./tiny\n"
EXPERIMENT = "# @package _global_\nname: x\n"
SUITE = "defaults: [suite_schema, _self_]\nname: x\n"


def bad_file(file: str, content: str | bytes, *said: str) -> Case:
    """A file of a group, named x.yaml, which the command line chooses."""
    group = file.partition("/")[0]
    written = content if isinstance(content, bytes) else content.encode()
    key = f"{group}@method.{group}" if group == "round" else group
    return bad(f"{key}=x", *said, prepare=lambda directory: (directory / "conf" / f"{file}.yaml").write_bytes(written))


SYNTAX = [
    bad_file("model/x", MODEL + "bad: [1\n", "not YAML", "conf/model/x.yaml", "line 4"),
    bad_file("model/x", MODEL + "\trevision: y\n", "not YAML", "conf/model/x.yaml", "line 4", "'\\t'"),
    bad_file("model/x", MODEL + "name: y\n", "not YAML", "duplicate key name", "conf/model/x.yaml", "line 4"),
    bad_file("model/x", MODEL + "---\nname: y\n", "another document", "conf/model/x.yaml", "line 4"),
    bad_file("model/x", MODEL + "a: *nowhere\n", "undefined alias 'nowhere'", "conf/model/x.yaml", "line 4"),
    bad_file("model/x", b"\x00\x01", "special characters are not allowed", "conf/model/x.yaml"),
    bad_file("model/x", b"\xff\xfe" + MODEL.encode(), "conf/model/x.yaml: not UTF-8 text", "byte 0xff", "save it as"),
    bad_file("model/x", MODEL.replace(": x", ": café").encode("latin-1"), "conf/model/x.yaml: not UTF-8 text"),
]
MEANING = [
    bad_file("model/x", "- a\n- b\n", "conf/model/x.yaml", "entries of ModelConf are needed, not list"),
    bad_file("model/x", "just words", "conf/model/x.yaml", "'just words'", "valid keys: name, repo"),
    bad_file("model/x", "", "ModelConf has no value for `name`", "give it: model.name=..."),
    bad_file("model/x", MODEL + "shap: {}\n", "conf/model/x.yaml", "`model.shap`", "did you mean shape?"),
    bad_file(
        "model/x", MODEL + "shape: {hidden_size: big}\n", "conf/model/x.yaml", "`model.shape.hidden_size`", "`big`"
    ),
    bad_file(
        "model/x", "defaults: [nope]\nname: x\n", "conf/model/x.yaml: Could not load 'model/nope'", "schema first"
    ),
    bad_file("model/x", "defaults: nope\nname: x\n", "model=x", "'model/x', defaults must be a list"),
    bad_file("model/x", "defaults: [3]\nname: x\n", "model=x", "Unsupported type in defaults"),
    bad_file("model/x", MODEL + "revision: ${nowhere}\n", "'nowhere' not found", "`model.revision`"),
    bad_file("model/x", MODEL + "revision: ${model.repo\n", "`revision`", "'${model.repo'"),
    bad_file(
        "round/x", "defaults: [gptq_schema, _self_]\ndamping: .inf\n", "method.round.damping=inf: a finite number"
    ),
    bad_file("suite/x", SUITE, "suite=x scores nothing: give it texts (perplexity) or tasks"),
    bad_file("suite/x", SUITE + "tasks:\n", "conf/suite/x.yaml", "`suite.tasks`", "null is not allowed"),
    bad_file("suite/x", SUITE + "perplexity: {a: text.txt}\n", "conf/suite/x.yaml", "`suite.perplexity.a`", "TextConf"),
    bad_file(
        "suite/x", SUITE + "perplexity: {a: {sorce: text}}\n", "`suite.perplexity.a.sorce`", "did you mean source?"
    ),
]
EXPERIMENTS = [
    bad_file("experiment/x", "name: x\n", "conf/experiment/x.yaml", "the first line", "`# @package _global_`"),
    bad_file(
        "experiment/x", EXPERIMENT + "axes: {bits: 3}\n", "conf/experiment/x.yaml", "`axes.bits`", "a list is needed"
    ),
    bad_file("experiment/x", EXPERIMENT + "axes: [bits]\n", "conf/experiment/x.yaml", "(key: value)"),
    bad_file("experiment/x", EXPERIMENT + "axes: {seed: []}\n", "axis `seed` has no values"),
    bad_file("experiment/x", EXPERIMENT + "axes: {bits: [{a: 2}]}\n", "cannot read `scheme.bits={'a': 2}`"),
    bad_file("experiment/x", EXPERIMENT + "axes: {sed: [1]}\n", "`sed` cannot be an axis: only model, method"),
    bad_file(
        "experiment/x", EXPERIMENT + "method: gptq\n", "conf/experiment/x.yaml", "entries of MethodConf are needed"
    ),
    bad_file("experiment/x", EXPERIMENT + "exclude: bits\n", "conf/experiment/x.yaml", "`exclude`", "a list is needed"),
    bad_file(
        "experiment/x", EXPERIMENT + "exclude: [bits]\n", "conf/experiment/x.yaml", "entries are needed: {key: value}"
    ),
]

YAML = {"YAML: syntax": SYNTAX, "YAML: meaning": MEANING, "YAML: experiments": EXPERIMENTS}

"""The models of conf/model/ whose sizes are given there."""

from pathlib import Path

import yaml

from conf.schema import ShapeConf

CONF = Path(__file__).parents[2] / "conf" / "model"
MODELS = {
    path.stem: (content["architecture"], ShapeConf(**content["shape"]))
    for path in sorted(CONF.glob("*.yaml"))
    if "shape" in (content := yaml.safe_load(path.read_text(encoding="utf-8")))
}

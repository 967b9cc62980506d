"""Variants that the pages describe as edits of a script: each can be made as described, and changes the training."""

import functools
import re

import pytest
import torch
from running import path, run_here

from benchmarks.records import ROOT
from benchmarks.tiny import load, run_dir, total

DECAY, LINEAR = "lr * (args.final_learning_rate / lr) ** fraction", "lr + (args.final_learning_rate - lr) * fraction"
TARGETS = 'data["next_values"] = '
MEAN_TARGETS = [(TARGETS, "amin(-1)", "mean(-1)")]
# script, flags beside the edits, edits: (what the line contains, what is replaced in it, by what); "...": as it stands
VARIANTS = {
    "rpo, no ratio": (
        "rpo",
        "--clip-low inf --clip-high inf",
        [("surrogate = ", "surrogate = (ratio * keep * ...", "surrogate = (keep * ...")],
    ),
    "rpo, smaller value": ("rpo", "", [(TARGETS, "mean(-1)", "amin(-1)")]),
    "shac, mean value": ("shac", "", MEAN_TARGETS),
    "shac, constant lr": ("shac", "", [(LINEAR, LINEAR, "lr")]),
    "sapo, decay": ("sapo", "", [(LINEAR, LINEAR, DECAY)]),
    "sapo, constant lr": ("sapo", "", [(LINEAR, LINEAR, "lr")]),
    "sapo, mean value": ("sapo", "", MEAN_TARGETS),
    "ahac, mean value": ("ahac", "", [("values[last]", "amin(-1)", "mean(-1)")]),
    "gippo, authors' lr": ("gippo", "", [("alpha_optimizer = ", "lr=args.learning_rate", "lr=5e-3")]),
    "gippo, smaller value": ("gippo", "", [("next_values = critic", "critic(...).mean(-1)", "critic(...).amin(-1)")]),
    "gippo, no regression": ("gippo", "", [("alpha_retries = ", "with_retries(regression_epochs, ...)", "None, 8")]),
    "reppo, no norm": ("reppo", "", [("nn.LayerNorm", "nn.LayerNorm(n_out)", "nn.Identity()")]),
    "reppo, RMSNorm": ("reppo", "", [("nn.LayerNorm", "nn.LayerNorm(n_out)", "nn.RMSNorm(n_out)")]),
    "reppo, no lower bound": ("reppo", "", [("MIN_STD = 0.1", "MIN_STD = 0.1", "MIN_STD = 0.0")]),
    "fasttd3, own targets": (
        "fasttd3",
        "",
        [
            ("return projected[", "return projected[...]", "return projected"),
            ("(targets[:, None]", "targets[:, None]", "targets"),
            ('"q_value"', "targets", "targets.mean(1)"),
            ('"q_at_the_ends"', "targets", "targets.mean(1)"),
            ("critic.q_values(obs, action)", "amin(-1)", "mean(-1)"),
        ],
    ),
    "fasttd3, LayerNorm": ("fasttd3", "", [("nn.ReLU()", "nn.ReLU()", "nn.LayerNorm(n_out), nn.ReLU()")]),
}
# what the pages describe in words
UNQUOTED = ("lr=args.learning_rate", "MIN_STD = 0.1", "return projected[...]", "targets")


def page_of(script):
    return " ".join((ROOT / f"docs/{script}.md").read_text().split())


def edited(text, place, old, new):
    """The script with one line changed: a page that says more or less than one line is wrong."""
    (line,) = (line for line in text.splitlines(keepends=True) if place in line)
    pattern = re.escape(old).replace(re.escape("..."), "(.*?)")
    changed, number = re.subn(pattern, lambda match: new.replace("...", "".join(match.groups())), line)
    assert number > 0, f"{old} is not in {line}"
    return text.replace(line, changed)


def trained(folder, script, flags, text):
    """The parts of the checkpoint that an edited script leaves after 96 steps."""
    folder.mkdir()
    file = folder / path(script).name
    file.write_text(text)
    run_here(folder, script, *total(3), *flags.split(), file=file)
    return load(run_dir(folder) / "checkpoint.pt")


def weights(checkpoint):
    return torch.cat([x.flatten() for name in ("actor", "critic") for x in checkpoint[name].values()])


@pytest.fixture(scope="module")
def as_shipped(tmp_path_factory):
    """(script, flags) -> the weights that the script as it is ends with."""

    @functools.cache
    def run(script, flags):
        text = path(script).read_text()
        return weights(trained(tmp_path_factory.mktemp("shipped") / script, script, flags, text))

    return run


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_trains_and_differs(name, as_shipped, tmp_path):
    script, flags, edits = VARIANTS[name]
    variant, page = path(script).read_text(), page_of(script)
    for edit in edits:
        assert f"`{edit[-1]}`" in page and (f"`{edit[1]}`" in page or edit[1] in UNQUOTED)
        variant = edited(variant, *edit)
    left, right = as_shipped(script, flags), weights(trained(tmp_path / "edited", script, flags, variant))
    assert right.isfinite().all()
    assert len(left) != len(right) or not torch.equal(left, right)


def test_wider_layers_of_reppo(as_shipped, tmp_path):
    """The numbers 400, 200 and 100 in Actor and Critic."""
    networks = slice(*(path("reppo").read_text().index(name) for name in ("class Actor", "class ObsNormalizer")))
    text = path("reppo").read_text()
    wider = text[networks].replace("400", "512").replace("200", "512").replace("100", "512")
    text = text[: networks.start] + wider + text[networks.stop :]
    variant = weights(trained(tmp_path / "edited", "reppo", "", text))
    assert variant.isfinite().all() and len(variant) > 2 * len(as_shipped("reppo", ""))


def test_the_earlier_rule_of_ahac(tmp_path):
    """AHAC5: H follows the return, and the dual variable H; on the page as two lines in place of the script's own."""
    text, page = path("ahac").read_text(), page_of("ahac")
    rule = (
        "self.dual = self.dual + 1e-4 * (self.length - args.horizon_min)",
        "length = self.length + 2e-3 * (R / self.length - self.dual * self.length)",
    )
    assert all(f"`{line}`" in page for line in (*rule, "R = returns.mean().item()"))
    own = text[text.index("        if self.num_updates <= 10:") : text.index("        self.length = length.clamp")]
    text = text.replace(own, "".join(f"        {line}\n" for line in rule))
    text = text.replace("def update(self, stiffness, ", "def update(self, R, ")
    text = text.replace("horizon.update(stiffness, ", "horizon.update(R, ")
    text = text.replace("del returns, loss", "R = returns.mean().item(); del returns, loss")
    horizon = trained(tmp_path / "edited", "ahac", "--num-steps 8", text)["horizon"]
    # two rollouts, of 8 steps and of 4; H_min is 4
    assert horizon["dual"] == pytest.approx(2 * 1e-4 * (8 - 4), rel=0.05)
    # cartpole's rewards are negative; the dual variable alone would shorten H by 2e-5
    assert 4 < horizon["length"] < 8 - 1e-3

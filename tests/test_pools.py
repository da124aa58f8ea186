"""Every built-in pool: what any pool must be (`trainer.gate.checks`), what ours must be besides, and its formula."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import pickle
import statistics
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from search_spaces import pool
from trainer import pools
from trainer.device import cpu
from trainer.gate import checks
from trainer.gate.case import Case
from trainer.network import count_parameters
from trainer.pools._tokens import Attention, largest_divisor, resize


def build(spec: str, channels: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return pools.build(pool.expand(spec)[0], channels)


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", pool.names())
class TestEveryPool:
    @pytest.mark.parametrize("arch", checks.SHAPES)
    def test_passes_the_checks_without_a_note(self, name: str, arch: str) -> None:
        assert checks.check(Case(pool.expand(name)[0], arch)) == []

    def test_samples_do_not_see_each_other_in_training(self, name: str) -> None:
        """The checks see to it in evaluation: a user's pool may normalise over the batch, ours do not."""
        module, x = build(name, 8).train(), maps(4, 8, 5, 5)
        if name != "stochastic":
            torch.testing.assert_close(module(x), torch.cat([module(x[i : i + 1]) for i in range(4)]))

    def test_a_copy_computes_the_same(self, name: str) -> None:
        module, x = build(name, 8).eval(), maps(2, 8, 4, 4)
        for other in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
            assert torch.equal(other(x), module(x))

    def test_every_parameter_is_learned_from_the_start(self, name: str) -> None:
        """A bias under a softmax has a gradient too, of rounding errors."""
        module = build(name, 64).train()
        out = module(maps(4, 64, 8, 8).requires_grad_())
        (out * maps(*out.shape, seed=7)).sum().backward()  # a layer norm takes a plain sum's gradient to zero
        for key, parameter in module.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.abs().max() > 1e-5, key

    def test_any_number_of_channels(self, name: str) -> None:
        for channels in (*range(1, 8), 12, 65):
            assert build(name, channels)(maps(2, channels, 3, 2)).shape == (2, channels)

    def test_the_fast_layers_of_the_cpu_compute_the_same(self, name: str) -> None:
        for size in ((1, 1), (2, 2), (5, 5)):
            module, x = build(name, 16).eval(), maps(2, 16, *size)
            expected = module(x)
            cpu.speed_up(module)
            torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)

    def test_size_and_documentation(self, name: str) -> None:
        """A default that is no literal would not be part of a trial's identity."""
        assert count_parameters(build(name, 1280)) < 4e6
        cls = pools.load_class(pool.expand(name)[0])
        assert inspect.getmodule(cls).__doc__
        arguments = [] if cls.__init__ is nn.Module.__init__ else list(inspect.signature(cls).parameters)
        arguments = [key for key in arguments if key != "channels"]
        assert sorted(dict(pool.expand(name)[0].params)) == sorted(arguments)
        for key in arguments:
            assert f"{key}:" in (cls.__doc__ or ""), key


WRONG = (
    "lp(p=0) lp(eps=0) log_sum_exp(r=0) log_average_exp(t=0) top_k(k=0) top_k(k=1.5) top_k(k_min=-1) top_k(alpha=-1) "
    "avg_max(weight=2) gem_per_channel(p=0) gem_per_channel(eps=0) power_mean(p=1) power_mean(p=11) power_mean(eps=0) "
    "alpha_integration(eps=0) gated(size=0) ordinal(ranks=0) ordinal(ranks=True) lip(width=0) soft_attention(width=0) "
    "multi_head(heads=0) self_attention(width=0) self_attention(heads=0) pma(seeds=0) pma(width=0) pma(heads=0) "
    "latent_attention(latents=0) latent_attention(width=0) latent_attention(heads=0) simpool(gamma=0) simpool(eps=0) "
    "clip_attention(size=0) clip_attention(width=0) clip_attention(heads=0) cross_attention(width=0) "
    "cross_attention(heads=0) se(ratio=0) cbam(ratio=0) cbam(kernel=6) aspp(width=0) aspp(rates=2) aspp(rates=[[1,0]]) "
    "deformable(width=0) spatial_pyramid(levels=3) spatial_pyramid(levels=[[]]) spatial_pyramid(levels=[[2,0]]) "
    "adaptive_grid(k=0) mean_std(eps=0) covariance(width=0) covariance(iterations=0) covariance(eps=0) "
    "netvlad(clusters=0) netvlad(width=0) gaussian_mixture(components=0) gaussian_mixture(width=0) "
    "gap_mlp(parameters=0)"
).split()


@pytest.mark.parametrize("spec", WRONG)
def test_a_wrong_argument_is_named_with_what_is_allowed(spec: str) -> None:
    name = spec.partition("(")[2].partition("=")[0]
    with pytest.raises(ValueError, match=rf"{name}.*must .*got "):
        build(spec, 8)


POSITIVE = torch.rand(3, 4, 5, 6, generator=torch.Generator().manual_seed(1)) + 0.1
SIGNED = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(2))


def randomised(spec: str, channels: int, spread: float = 0.5) -> tuple[nn.Module, dict[str, Tensor]]:
    """A pool in evaluation mode whose parameters are none of their starting values, and these in float64."""
    module = build(spec, channels).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += spread * torch.randn(parameter.shape, generator=generator)
    return module, {key: value.double() for key, value in module.state_dict().items()}


def test_formulas_without_channels() -> None:
    """Each against a definition of a line or two, in float64."""
    for maps_ in (POSITIVE, SIGNED):
        x = maps_.double()
        flat, ordered = x.flatten(2), x.flatten(2).sort(2).values
        mean, largest = flat.sum(2) / 30, ordered[:, :, -1]
        active = flat.clamp(min=0)
        wanted = {
            "gap": mean,
            "global_max": largest,
            "avg_max": 0.5 * (mean + largest),
            "avg_max(weight=0.2)": 0.8 * mean + 0.2 * largest,
            "lp": ((flat**2).sum(2) / 30).sqrt(),
            "lp(p=5)": ((flat.abs() ** 5).sum(2) / 30) ** (1 / 5),
            "log_sum_exp": ((10 * flat).exp().sum(2) / 30).log() / 10,
            "log_sum_exp(r=-2)": ((-2 * flat).exp().sum(2) / 30).log() / -2,
            "log_average_exp": (flat.exp().sum(2) / 30).log(),
            "log_average_exp(t=0.3)": 0.3 * ((flat / 0.3).exp().sum(2) / 30).log(),
            "softpool": (flat.exp() * flat).sum(2) / flat.exp().sum(2),
            "top_k": ordered[:, :, -4:].sum(2) / 4,
            "top_k(k=3, k_min=2)": ordered[:, :, -3:].sum(2) / 3 + 0.7 * ordered[:, :, :2].sum(2) / 2,
            "top_k(k=1, k_min=1, alpha=0.2)": largest + 0.2 * ordered[:, :, 0],
            "median": (ordered[:, :, 14] + ordered[:, :, 15]) / 2,
            "stochastic": (active * flat).sum(2) / active.sum(2),
            "mixed": 0.5 * (mean + largest),
            "gated": 0.5 * (mean + largest),
            "ordinal": mean,
        }
        if maps_ is POSITIVE:
            wanted |= {
                "gem": ((flat**3).sum(2) / 30) ** (1 / 3),
                "gem(p=5)": ((flat**5).sum(2) / 30) ** (1 / 5),
                "gem_per_channel": ((flat**3).sum(2) / 30) ** (1 / 3),
                "power_mean": ((flat**3).sum(2) / 30) ** (1 / 3),
                "power_mean(p=2, p_max=4)": ((flat**2).sum(2) / 30) ** (1 / 2),
                "alpha_integration": ((flat**2).sum(2) / 30) ** (1 / 2),
                "alpha_integration(alpha=3)": 30 / (1 / flat).sum(2),
                "alpha_integration(alpha=-9)": ((flat**5).sum(2) / 30) ** (1 / 5),
            }
        for spec, value in wanted.items():
            found = build(spec, 4).eval()(maps_).double()
            torch.testing.assert_close(
                found, value, rtol=1e-5, atol=2e-6, msg=lambda text, spec=spec: f"{spec}: {text}"
            )


def attention(p: dict[str, Tensor], prefix: str, queries: Tensor, context: Tensor, heads: int) -> Tensor:
    """[Q, C] and [N, C] -> [Q, C], a head and a query at a time, in numpy."""
    q, k, v = (
        (tensor @ p[f"{prefix}{part}.weight"].T + p.get(f"{prefix}{part}.bias", torch.zeros(1))).numpy()
        for part, tensor in (("query", queries), ("key", context), ("value", context))
    )
    size = q.shape[1] // heads
    out = np.empty_like(q)
    for row, head in itertools.product(range(len(q)), range(heads)):
        part = slice(head * size, (head + 1) * size)
        scores = np.array([q[row, part] @ key[part] for key in k]) / math.sqrt(size)
        weights = np.exp(scores - scores.max())
        out[row, part] = (weights / weights.sum()) @ v[:, part]
    return torch.from_numpy(out) @ p[f"{prefix}out.weight"].T + p[f"{prefix}out.bias"]


def normed(p: dict[str, Tensor], prefix: str, x: Tensor) -> Tensor:
    """Layer normalisation over the last dimension."""
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * p[f"{prefix}.weight"] + p[f"{prefix}.bias"]


def linear(p: dict[str, Tensor], prefix: str, x: Tensor) -> Tensor:
    """A linear layer, or a 1x1 convolution of rows of channels."""
    return x @ p[f"{prefix}.weight"].flatten(1).T + p.get(f"{prefix}.bias", torch.zeros(1, dtype=x.dtype))


def rows(x: Tensor) -> Tensor:
    """[C, H, W] -> [HW, C]."""
    return torch.stack([x[:, i, j] for i in range(x.shape[1]) for j in range(x.shape[2])])


def of_ordinal(p: dict[str, Tensor], x: Tensor) -> Tensor:
    ranks = x[0].numel()
    logits = np.interp(np.linspace(0, 1, ranks), np.linspace(0, 1, 16), p["logits"][0, 0].numpy())
    weights = np.exp(logits) / np.exp(logits).sum()
    return torch.stack([torch.tensor(-np.sort(-channel.flatten().numpy()) @ weights) for channel in x])


def of_lip(p: dict[str, Tensor], x: Tensor) -> Tensor:
    hidden = linear(p, "importance.0", rows(x)).clamp(min=0)
    weights = (12 / (1 + (-linear(p, "importance.2", hidden)).exp())).exp()
    return (weights * rows(x)).sum(0) / weights.sum(0)


def of_soft_attention(p: dict[str, Tensor], x: Tensor) -> Tensor:
    scores = linear(p, "score.2", linear(p, "score.0", rows(x)).tanh())
    return (scores.exp() * rows(x)).sum(0) / scores.exp().sum()


def of_multi_head(p: dict[str, Tensor], x: Tensor) -> Tensor:
    pooled = []
    for query, piece in zip(p["query"], rows(x).split(p["query"].shape[2], dim=1), strict=True):
        weights = (piece @ query[0] / math.sqrt(piece.shape[1])).exp()
        pooled.append(weights @ piece / weights.sum())
    return torch.cat(pooled)


def of_self_attention(p: dict[str, Tensor], x: Tensor) -> Tensor:
    points = normed(p, "norm", rows(x))
    return (rows(x) + attention(p, "attention.", points, points, 4)).mean(0)


def of_pma(p: dict[str, Tensor], x: Tensor) -> Tensor:
    points = linear(p, "before.2", linear(p, "before.0", rows(x)).clamp(min=0))
    hidden = normed(p, "norm_attention", p["seeds"][0] + attention(p, "attention.", p["seeds"][0], points, 4))
    after = linear(p, "after.2", linear(p, "after.0", hidden).clamp(min=0))
    return normed(p, "norm_after", hidden + after).mean(0)


def of_latent_attention(p: dict[str, Tensor], x: Tensor) -> Tensor:
    points = rows(x) + attention(p, "attention.", normed(p, "norm_attention", rows(x)), p["latents"][0], 4)
    hidden = linear(p, "perceptron.1", normed(p, "perceptron.0", points))
    gelu = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return (points + linear(p, "perceptron.3", gelu)).mean(0)


def of_simpool(p: dict[str, Tensor], x: Tensor) -> Tensor:
    points = normed(p, "norm", rows(x))
    query = linear(p, "query", x.mean((1, 2)))
    weights = (linear(p, "key", points) @ query / math.sqrt(len(x))).exp()
    values = points - points.min() + 1e-6
    return ((weights / weights.sum()) @ values**2).sqrt()


def of_clip_attention(p: dict[str, Tensor], x: Tensor) -> Tensor:
    embedding = p["positions"]
    if embedding.shape[2:] != x.shape[1:]:  # resize has a test of its own
        embedding = resize(embedding, *x.shape[1:])
    mean = x.mean((1, 2))[None] + p["mean_position"][0]
    return attention(p, "attention.", mean, torch.cat([mean, rows(x) + rows(embedding[0])]), 4)[0]


def of_se(p: dict[str, Tensor], x: Tensor) -> Tensor:
    mean = x.mean((1, 2))
    hidden = linear(p, "excitation.fc1", mean).clamp(min=0)
    return mean / (1 + (-linear(p, "excitation.fc2", hidden)).exp())


def of_cbam(p: dict[str, Tensor], x: Tensor) -> Tensor:
    logits = sum(
        linear(p, "perceptron.2", linear(p, "perceptron.0", summary).clamp(min=0))
        for summary in (x.mean((1, 2)), x.amax((1, 2)))
    )
    gated = x / (1 + (-torch.as_tensor(logits)).exp())[:, None, None]
    summary = F.pad(torch.stack([gated.mean(0), gated.amax(0)]), (3, 3, 3, 3))
    kernel, bias = p["convolution.weight"][0], p["convolution.bias"]
    total = torch.zeros(len(x), dtype=x.dtype)
    for i, j in itertools.product(range(x.shape[1]), range(x.shape[2])):
        score = (kernel * summary[:, i : i + 7, j : j + 7]).sum() + bias
        total += gated[:, i, j] / (1 + (-score).exp())
    return total / x[0].numel()


def of_aspp(p: dict[str, Tensor], x: Tensor) -> Tensor:
    image = linear(p, "image", x.mean((1, 2))).clamp(min=0)
    total = torch.zeros(len(x), dtype=x.dtype)
    for i, j in itertools.product(range(x.shape[1]), range(x.shape[2])):
        branches = [linear(p, "point", x[:, i, j]).clamp(min=0)]
        for index, rate in enumerate((1, 2, 4)):
            weight = p[f"dilated.{index}.weight"]
            padded = F.pad(x, (rate,) * 4)
            seen = padded[:, i : i + 2 * rate + 1 : rate, j : j + 2 * rate + 1 : rate]
            branches.append(((weight * seen).sum((1, 2, 3)) + p[f"dilated.{index}.bias"]).clamp(min=0))
        total += linear(p, "project", torch.cat([*branches, image])).clamp(min=0)
    return total / x[0].numel()


def cells(x: Tensor, *levels: int) -> list[Tensor]:
    """The n x n bins of an adaptive pool, level by level and row by row."""
    height, width = x.shape[1:]
    return [
        x[:, i * height // n : -(-(i + 1) * height // n), j * width // n : -(-(j + 1) * width // n)]
        for n in levels
        for i, j in itertools.product(range(n), range(n))
    ]


def of_mean_std(p: dict[str, Tensor], x: Tensor) -> Tensor:
    mean = x.mean((1, 2))
    variance = ((x - mean[:, None, None]) ** 2).mean((1, 2))
    return linear(p, "project", torch.cat([mean, (variance + 1e-5).sqrt()]))


def of_covariance(p: dict[str, Tensor], x: Tensor) -> Tensor:
    points = linear(p, "reduce", rows(x)).numpy()
    covariance = np.cov(points.T, bias=True) + 1e-5 * np.eye(points.shape[1])
    root = np.real(scipy.linalg.sqrtm(covariance))
    upper = [root[i, j] for i in range(len(root)) for j in range(i, len(root))]
    return linear(p, "project", torch.tensor(upper, dtype=torch.float64))


def of_netvlad(p: dict[str, Tensor], x: Tensor) -> Tensor:
    residuals = torch.zeros_like(p["centres"])
    for point in linear(p, "reduce", rows(x)):
        shares = linear(p, "assign", point).exp()
        for k, centre in enumerate(p["centres"]):
            residuals[k] += shares[k] / shares.sum() * (point - centre)
    residuals /= ((residuals**2).sum(1, keepdim=True) + 1e-6).sqrt()
    return linear(p, "project", residuals.flatten() / ((residuals**2).sum() + 1e-6).sqrt())


def of_gaussian_mixture(p: dict[str, Tensor], x: Tensor) -> Tensor:
    points, means, sigmas = linear(p, "reduce", rows(x)), p["means"], p["log_sigmas"].exp()
    weights = p["weight_logits"].exp() / p["weight_logits"].exp().sum()
    first, second = torch.zeros_like(means), torch.zeros_like(means)
    for point in points:
        densities = torch.stack(
            [torch.distributions.Normal(means[k], sigmas[k]).log_prob(point).sum().exp() for k in range(len(means))]
        )
        posteriors = weights * densities / (weights * densities).sum()
        for k in range(len(means)):
            deviation = (point - means[k]) / sigmas[k]
            first[k] += posteriors[k] * deviation / (len(points) * weights[k].sqrt())
            second[k] += posteriors[k] * (deviation**2 - 1) / (len(points) * (2 * weights[k]).sqrt())
    vector = torch.cat([torch.cat([first[k], second[k]]) for k in range(len(means))])
    vector = vector / (vector.abs() + 1e-6).sqrt()
    return linear(p, "project", vector / ((vector**2).sum() + 1e-6).sqrt())


def of_gap_mlp(p: dict[str, Tensor], x: Tensor) -> Tensor:
    mean = x.mean((1, 2))
    hidden = linear(p, "first", mean)
    return mean + linear(p, "second", hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))))


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + (-x).exp())


def blend(share: Tensor, x: Tensor) -> Tensor:
    return (1 - share) * x.mean((1, 2)) + share * x.amax((1, 2))


def power_mean(exponent: Tensor, x: Tensor) -> Tensor:
    return (rows(x).clamp(min=1e-6) ** exponent).mean(0) ** (1 / exponent)


# Every pool with parameters: how it is called; its definition, by parameters and a map [C, H, W]; the map's size.
LEARNED: dict[str, tuple[Callable[[dict[str, Tensor], Tensor], Tensor], tuple[int, int]]] = {
    "gem": (lambda p, x: power_mean(p["p"], x), (5, 6)),
    "gem_per_channel": (lambda p, x: power_mean(p["p"], x), (5, 6)),
    "power_mean": (lambda p, x: power_mean(1 + 9 * sigmoid(p["theta"]), x), (5, 6)),
    "alpha_integration": (lambda p, x: power_mean((1 - p["alpha"]) / 2, x), (5, 6)),
    "log_average_exp": (lambda p, x: p["log_t"].exp() * (rows(x) / p["log_t"].exp()).exp().mean(0).log(), (5, 6)),
    "mixed": (lambda p, x: blend(sigmoid(p["theta"]), x), (5, 6)),
    "gated": (lambda p, x: blend(sigmoid((p["mask"][0, 0] * x).sum((1, 2))), x), (8, 8)),
    "ordinal": (of_ordinal, (5, 6)),
    "lip": (of_lip, (5, 6)),
    "soft_attention": (of_soft_attention, (5, 6)),
    "multi_head(heads=4)": (of_multi_head, (5, 6)),
    "self_attention(heads=4)": (of_self_attention, (3, 4)),
    "self_attention(heads=4, width=4)": (of_self_attention, (3, 4)),
    "pma(heads=4)": (of_pma, (3, 4)),
    "latent_attention(heads=4)": (of_latent_attention, (3, 4)),
    "simpool": (of_simpool, (5, 6)),
    "clip_attention(heads=4)": (of_clip_attention, (8, 8)),
    "clip_attention(heads=4, size=3)": (of_clip_attention, (4, 2)),
    "cross_attention(heads=4)": (
        lambda p, x: attention(p, "attention.", p["query"][0], normed(p, "norm", rows(x)), 4)[0],
        (5, 6),
    ),
    "se": (of_se, (5, 6)),
    "cbam": (of_cbam, (5, 6)),
    "aspp": (of_aspp, (6, 5)),
    "spatial_pyramid": (
        lambda p, x: (torch.stack([bin_.amax((1, 2)) for bin_ in cells(x, 1, 2, 4)], 1) * p["weight"]).sum(1),
        (5, 6),
    ),
    "adaptive_grid": (
        lambda p, x: (torch.stack([cell.mean((1, 2)) for cell in cells(x, 2)], 1) * p["weight"]).sum(1),
        (5, 6),
    ),
    "avg_max_concat": (lambda p, x: linear(p, "project", torch.cat([x.mean((1, 2)), x.amax((1, 2))])), (5, 6)),
    "mean_std": (of_mean_std, (5, 6)),
    "covariance(width=4, iterations=20)": (of_covariance, (5, 6)),
    "netvlad": (of_netvlad, (5, 6)),
    "gaussian_mixture": (of_gaussian_mixture, (5, 6)),
    "gap_mlp": (of_gap_mlp, (5, 6)),
}


@pytest.mark.parametrize("spec", LEARNED)
def test_formulas_at_chosen_parameters(spec: str) -> None:
    """Each against its definition for one sample, in float64, with parameters that are not those it starts from."""
    definition, size = LEARNED[spec]
    # Softmaxes of scores in the tens, and thousands of parameters of 0.5, would hide what is small.
    module, parameters = randomised(spec, 8, spread=0.2)
    x = maps(3, 8, *size, seed=4)
    wanted = torch.stack([definition(parameters, sample) for sample in x.double()])
    with torch.no_grad():
        found = module(x)
    assert found.shape == wanted.shape
    loose = spec.startswith("covariance")  # twenty products of matrices, in fp32
    torch.testing.assert_close(found.double(), wanted, rtol=1e-3 if loose else 1e-4, atol=1e-4 if loose else 1e-5)


def test_every_pool_has_a_formula_here() -> None:
    tested = {spec.partition("(")[0] for spec in LEARNED} | {"gap", "global_max", "avg_max"}
    tested |= {"lp", "log_sum_exp", "softpool", "top_k", "median", "stochastic", "deformable"}
    assert tested == set(pool.names())


def test_deformable_convolution_samples_where_its_offsets_say() -> None:
    for part in ("weight", "bias"):
        assert not build("deformable", 8).get_parameter(f"offsets.{part}").any(), "it starts as a plain one"
    module, p = randomised("deformable", 8, spread=0.2)
    x = maps(2, 8, 5, 6, seed=4)
    reduced = F.conv2d(x.double(), p["reduce.weight"], p["reduce.bias"])
    offsets = dict(module.named_parameters())
    for down, right in ((0, 0), (1, 0), (0, -1), (2, 1)):
        with torch.no_grad():
            offsets["offsets.weight"].zero_()
            offsets["offsets.bias"][0::2] = down  # y and x in turn, for each of the nine points
            offsets["offsets.bias"][1::2] = right
            found = module(x)
        padded = F.pad(reduced, (1 - right, 1 + right, 1 - down, 1 + down))  # a negative pad crops
        hidden = F.conv2d(padded, p["convolution.weight"], p["convolution.bias"]).clamp(min=0)
        wanted = (x + F.conv2d(hidden, p["expand.weight"], p["expand.bias"])).mean((2, 3))
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)


def test_attention_is_torchs_where_the_width_is_the_channels() -> None:
    ours, theirs = Attention(8, 6, 8, 4), nn.MultiheadAttention(8, 4, kdim=6, vdim=6, batch_first=True)
    with torch.no_grad():
        assert theirs.in_proj_bias is not None
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, torch.zeros(8), ours.value.bias]))
        for part, letter in (("query", "q"), ("key", "k"), ("value", "v")):
            getattr(theirs, f"{letter}_proj_weight").copy_(getattr(ours, part).weight)
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    queries, context = maps(2, 3, 8), maps(2, 5, 6)
    torch.testing.assert_close(ours(queries, context), theirs(queries, context, context)[0])
    torch.testing.assert_close(ours(queries[:1], context), theirs(queries[:1].expand(2, -1, -1), context, context)[0])


@pytest.mark.parametrize("p", [1.0, 2.0, 3.5])
def test_lp_is_torchs_up_to_the_number_of_positions(p: float) -> None:
    theirs = nn.LPPool2d(p, kernel_size=(5, 6))(POSITIVE).flatten(1)
    torch.testing.assert_close(build(f"lp(p={p})", 4)(POSITIVE), theirs * 30 ** (-1 / p))


def test_heads_divide_the_channels() -> None:
    assert [largest_divisor(n, 8) for n in (1, 3, 5, 6, 7, 8, 11, 12, 64, 1280)] == [1, 3, 5, 6, 7, 8, 1, 6, 8, 8]


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 8), (11, 9), (2, 16)])
def test_a_grid_is_resized_as_an_image(size: tuple[int, int]) -> None:
    grid = maps(1, 1, 8, 8)
    wanted = Image.fromarray(grid[0, 0].numpy()).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(resize(grid, *size)[0, 0].numpy(), np.asarray(wanted), rtol=1e-5, atol=1e-6)


def test_median_is_that_of_the_standard_library() -> None:
    for size in ((5, 5), (5, 6), (1, 1), (1, 2)):
        x = maps(2, 3, *size)
        wanted = [[statistics.median(channel.flatten().tolist()) for channel in sample] for sample in x]
        torch.testing.assert_close(build("median", 3)(x), torch.tensor(wanted))


def test_limits() -> None:
    """Where a formula has none, and where its terms overflow."""
    gap, largest = build("gap", 4)(POSITIVE), build("global_max", 4)(POSITIVE)
    exactly = "gem(p=1) avg_max(weight=0) lp(p=1) top_k(k=1000) ordinal multi_head adaptive_grid(k=1)".split()
    nearly = "log_sum_exp(r=1e-4) log_average_exp(t=1e4) power_mean(p=1.00001)".split()
    maxima = "gem(p=200) gem_per_channel(p=200) lp(p=200) log_sum_exp(r=300) log_average_exp(t=0.003)".split()
    wanted = {
        **dict.fromkeys(exactly, (gap, 2e-6)),
        **dict.fromkeys(("gem_per_channel(p=1)", "alpha_integration(alpha=-1)"), (gap, 1e-5)),
        **dict.fromkeys(nearly, (gap, 1e-4)),
        **dict.fromkeys(("avg_max(weight=1)", "top_k(k=1)", "spatial_pyramid(levels=[[1]])"), (largest, 2e-6)),
        **dict.fromkeys((*maxima, "alpha_integration(alpha=-400)"), (largest, 0.02)),
        "log_sum_exp(r=-300)": (POSITIVE.amin((2, 3)), 0.15),
        "alpha_integration(alpha=1)": (POSITIVE.log().mean((2, 3)).exp(), 1e-5),
        **{
            f"{name}({key}={1 - 2 * p if key == 'alpha' else p})": (build(f"gem(p={p})", 4)(POSITIVE), 1e-5)
            for name, key in (("power_mean", "p"), ("gem_per_channel", "p"), ("alpha_integration", "alpha"))
            for p in (1.5, 3.0, 7.0)
        },
    }
    for spec, (value, rtol) in wanted.items():
        found = build(spec, 4).eval()(POSITIVE)
        torch.testing.assert_close(found, value, rtol=rtol, atol=1e-6, msg=lambda text, spec=spec: f"{spec}: {text}")
    even = POSITIVE[:, :, :4]  # k divides 4x6
    torch.testing.assert_close(build("adaptive_grid", 4)(even), even.mean((2, 3)), rtol=2e-6, atol=1e-6)


AVERAGES = (
    "gap global_max avg_max gem lp log_sum_exp log_average_exp softpool top_k median stochastic gem_per_channel mixed "
    "gated alpha_integration ordinal lip power_mean soft_attention multi_head spatial_pyramid adaptive_grid"
).split()


@pytest.mark.parametrize("name", AVERAGES)
def test_a_constant_map_gives_the_constant(name: str) -> None:
    for size, training in itertools.product(((1, 1), (5, 3)), (False, True)):
        x = torch.tensor([0.3, 1.0, 2.0])[None, :, None, None].expand(2, 3, *size)
        torch.testing.assert_close(build(name, 3).train(training)(x), x[:, :, 0, 0])


def test_log_sum_exp_does_not_overflow_and_keeps_its_digits() -> None:
    x = 1e4 + POSITIVE
    wanted = ((10 * POSITIVE.double()).exp().mean((2, 3)).log() / 10 + 1e4).float()
    torch.testing.assert_close(build("log_sum_exp", 4)(x), wanted)


@pytest.mark.parametrize("alpha", [1.0, 1 + 1e-7, 1 - 1e-6, 1.001, 0.999])
def test_alpha_integration_is_smooth_through_the_geometric_mean(alpha: float) -> None:
    """dy/dalpha at 1 is -y var(log x) / 4."""
    module = build(f"alpha_integration(alpha={alpha})", 4)
    x = POSITIVE.clone().requires_grad_()
    y = module(x)
    y.sum().backward()
    logs = POSITIVE.log().flatten(2)
    geometric = logs.mean(2).exp()
    torch.testing.assert_close(y, geometric, rtol=1e-3, atol=0)
    slope = next(module.parameters()).grad
    assert slope is not None
    torch.testing.assert_close(slope[0], -(geometric * logs.var(2, correction=0)).sum() / 4, rtol=2e-3, atol=0)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, (geometric / 30)[:, :, None, None] / POSITIVE, rtol=5e-3, atol=0)


def test_power_means_stay_finite_at_their_largest_exponent() -> None:
    """1e5 to the power of 10 is no fp32 number."""
    x = 1e5 * POSITIVE
    module = build("power_mean(p=9.9)", 4)
    wanted = (x.double() ** 9.9).mean((2, 3)) ** (1 / 9.9)
    torch.testing.assert_close(module(x).double(), wanted, rtol=1e-5, atol=0)


def test_stochastic_draws_in_training_average_to_the_expectation() -> None:
    x = torch.tensor([[1.0, 2.0, 0.0, 5.0], [-1.0, 4.0, -3.0, 1.0], [-1.0, -2.0, -4.0, -5.0], [0.0, 0.0, 0.0, 0.0]])
    x = x.reshape(1, 4, 2, 2)
    module = build("stochastic", 4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        draws = module.train()(x.expand(40000, -1, -1, -1))
    for channel in range(4):
        allowed = x[0, channel].flatten()
        allowed = allowed[allowed > 0] if (allowed > 0).any() else allowed
        assert set(draws[:, channel].tolist()) == set(allowed.tolist())  # never one of probability zero
    expectation = module.eval()(x)[0]
    torch.testing.assert_close(expectation, torch.tensor([30 / 8, 17 / 5, -3.0, 0.0]))
    torch.testing.assert_close(draws.mean(0), expectation, rtol=0, atol=0.04)  # five standard errors


@pytest.mark.parametrize("channels", [64, 512, 1280])
@pytest.mark.parametrize("asked", [10000, 123456, 1000000])
def test_the_control_has_as_many_parameters_as_asked(channels: int, asked: int) -> None:
    assert abs(count_parameters(build(f"gap_mlp(parameters={asked})", channels)) - asked) <= channels
    assert count_parameters(build("gap_mlp(parameters=1)", channels)) == 3 * channels + 1, "one hidden unit"


@pytest.mark.parametrize("name", ["se", "cbam"])
@pytest.mark.parametrize(("channels", "hidden"), [(8, 4), (64, 4), (512, 32), (1280, 80)])
def test_a_gate_has_no_fewer_than_four_units(name: str, channels: int, hidden: int) -> None:
    spatial = 2 * 7 * 7 + 1 if name == "cbam" else 0
    assert count_parameters(build(name, channels)) == 2 * channels * hidden + hidden + channels + spatial


def test_the_mean_of_ties_goes_to_all_of_them() -> None:
    x = torch.ones(1, 1, 2, 2, requires_grad=True)
    build("global_max", 1)(x).sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [0.25] * 4

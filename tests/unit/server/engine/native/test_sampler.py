"""The sampler against transformers' own processors, and its promises about rows and seeds."""

import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", reason="needs torch")

from transformers.generation import (  # noqa: E402
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from server.core.sampling import SamplingParams  # noqa: E402
from server.engine.base import EngineRequest  # noqa: E402
from server.engine.native.batch import NOT_FINITE, Row  # noqa: E402
from server.engine.native.logits_processors import (  # noqa: E402
    ban_repeated_ngrams,
    generated_counts,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise_counts,
    penalise_repetition,
)
from server.engine.native.sampler import sample, uniform  # noqa: E402
from server.engine.native.sampling_plan import plan_sampling  # noqa: E402

CPU = torch.device("cpu")
VOCAB = 40


def scores(num_rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def history(*rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows with the start token 0 in front, and after their end as the runner pads them."""
    longest = max(map(len, rows)) + 1
    padded = [[0, *tokens] + [0] * (longest - 1 - len(tokens)) for tokens in rows]
    return torch.tensor(padded), torch.tensor([len(tokens) + 1 for tokens in rows])


def row(num_generated: int = 0, seed: int = 0, **params: object) -> Row:
    made = Row(EngineRequest("r", (5,), SamplingParams(**params)), arrival_s=0.0, seed=seed)
    made.token_ids.extend([9] * num_generated)
    return made


def choose(logits: torch.Tensor, rows: list[Row]) -> tuple[int, ...]:
    past, length = history(*([] for _ in rows))
    return sample(logits, rows, plan_sampling(rows, CPU), past, length)[1].token_ids


def test_repetition_penalty_equals_transformers() -> None:
    past, length = history([3, 3, 7], [5], [])
    found = scores(3)
    penalise_repetition(found, past, torch.tensor([[1.3], [0.7], [2.0]]))
    for index, penalty in enumerate((1.3, 0.7, 2.0)):
        wanted = RepetitionPenaltyLogitsProcessor(penalty)(past[index : index + 1, : length[index]], scores(3)[[index]])
        assert torch.equal(found[[index]], wanted)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_repeat_ngram_equals_transformers(size: int) -> None:
    past, length = history([3, 4, 5, 3, 4], [7, 7, 7], [2], [0, 0, 6])
    found = scores(4)
    ban_repeated_ngrams(found, past, length, [0, 1, 2, 3], size)
    for index in range(4):
        wanted = NoRepeatNGramLogitsProcessor(size)(past[index : index + 1, : length[index]], scores(4)[[index]])
        assert torch.equal(found[[index]], wanted), index


def test_no_repeat_ngram_leaves_other_rows_alone() -> None:
    past, length = history([3, 3], [3, 3])
    found = scores(2)
    ban_repeated_ngrams(found, past, length, [1], 2)
    assert torch.equal(found[0], scores(2)[0])
    assert found[1, 3] == float("-inf")


def test_top_k_equals_transformers() -> None:
    ks = [1, 5, 39, 1000]
    found = scores(5)
    keep_top_k(found, torch.tensor([*ks, 0]), 1000)
    for index, k in enumerate(ks):
        assert torch.equal(found[[index]], TopKLogitsWarper(k)(None, scores(5)[[index]]))
    assert torch.equal(found[4], scores(5)[4])


def test_top_p_equals_transformers() -> None:
    ps = [0.01, 0.5, 0.9, 0.999, 1.0]
    found = scores(5)
    keep_top_p(found, torch.tensor(ps))
    for index, p in enumerate(ps):
        assert torch.equal(found[[index]], TopPLogitsWarper(p)(None, scores(5)[[index]]))


def test_min_p_equals_transformers() -> None:
    ps = [0.001, 0.1, 0.5, 1.0]
    found = scores(5)
    keep_min_p(found, torch.tensor([*ps, 0.0]))
    for index, p in enumerate(ps):
        assert torch.equal(found[[index]], MinPLogitsWarper(p)(None, scores(5)[[index]]))
    assert torch.equal(found[4], scores(5)[4])


def test_counts_are_penalised_once_each_and_once_per_time() -> None:
    generated = [[3, 3, 7], [5], [], [0, 0, 6]]
    past, length = history(*generated)
    found = scores(4)
    row_ids, presence, frequency = [0, 2, 3], [0.5, 1.0, -2.0], [0.25, 1.0, 1.5]
    rows = torch.tensor(row_ids)
    counts = generated_counts(past[rows], length[rows], VOCAB)
    penalise_counts(found, rows, counts, torch.tensor(presence)[:, None], torch.tensor(frequency)[:, None])
    wanted = scores(4)
    for index, once, each in zip(row_ids, presence, frequency, strict=True):
        for token in set(generated[index]):
            wanted[index, token] -= once + each * generated[index].count(token)
    assert torch.allclose(found, wanted)
    assert torch.equal(found[1], scores(4)[1])


def begun(*generated: int, end: tuple[int, ...] = (1,), **params: object) -> Row:
    made = row(**params)
    made.token_ids.extend(generated)
    made.end_token_ids = frozenset(end)
    return made


def test_everything_at_once_equals_transformers_in_its_order() -> None:
    rows = [
        begun(3, 3, 7, min_new_tokens=4, end=(1, 9), logit_bias=((5, 4.0), (9, 50.0)), repetition_penalty=1.5),
        begun(3, 4, 3, min_new_tokens=3, end=(1, 9), logit_bias=((9, 50.0),)),
        begun(3, 4, 3, no_repeat_ngram_size=2, logit_bias=((4, 60.0), (6, 50.0))),
        begun(8),
    ]
    past, length = history(*(each.token_ids for each in rows))
    processors = [
        [
            SequenceBiasLogitsProcessor({(5,): 4.0, (9,): 50.0}),
            RepetitionPenaltyLogitsProcessor(1.5),
            MinNewTokensLengthLogitsProcessor(1, 4, [1, 9], device=CPU),
        ],
        [SequenceBiasLogitsProcessor({(9,): 50.0}), MinNewTokensLengthLogitsProcessor(1, 3, [1, 9], device=CPU)],
        [SequenceBiasLogitsProcessor({(4,): 60.0, (6,): 50.0}), NoRepeatNGramLogitsProcessor(2)],
        [],
    ]
    wanted = tuple(
        int(LogitsProcessorList(each)(past[[index], : length[index]], scores(4)[[index]]).argmax())
        for index, each in enumerate(processors)
    )
    assert sample(scores(4), rows, plan_sampling(rows, CPU), past, length)[1].token_ids == wanted
    assert wanted[1:3] == (9, 6)


def test_sampled_row_is_narrowed_as_transformers_narrows_it() -> None:
    warpers = [TemperatureLogitsWarper(2.0), TopKLogitsWarper(9), TopPLogitsWarper(0.9), MinPLogitsWarper(0.2)]
    kept = LogitsProcessorList(warpers)(None, scores(1)).isfinite()[0].nonzero().flatten().tolist()
    drawn = {
        choose(scores(1), [row(seed=seed, temperature=2.0, top_k=9, top_p=0.9, min_p=0.2)])[0] for seed in range(2000)
    }
    assert drawn == set(kept)
    assert 1 < len(kept) < 9


@pytest.mark.parametrize("params", [{"min_p": 0.9}, {"stop_token_ids": (3,)}, {"ignore_eos": True}])
def test_what_changes_no_greedy_choice_leaves_the_batch_greedy(params: dict[str, object]) -> None:
    assert plan_sampling([row(**params)], CPU).is_greedy


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.1},
        {"repetition_penalty": 1.1},
        {"presence_penalty": 0.1},
        {"frequency_penalty": -0.1},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 1},
        {"logit_bias": ((3, 1.0),)},
        {"num_logprobs": 0},
    ],
)
def test_what_changes_a_greedy_choice_or_is_reported_leaves_the_greedy_path(params: dict[str, object]) -> None:
    assert not plan_sampling([row(), row(**params)], CPU).is_greedy


def test_sample_greedy_takes_the_first_of_equals() -> None:
    logits = torch.zeros(2, VOCAB)
    logits[1, [4, 8]] = 1.0
    assert choose(logits, [row(), row()]) == (0, 4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_sample_row_not_finite_is_marked_and_neighbours_are_not(bad: float) -> None:
    logits = scores(3)
    wanted = logits.argmax(-1)
    logits[1, 7] = bad
    assert choose(logits, [row(), row(), row()]) == (wanted[0], NOT_FINITE, wanted[2])
    assert choose(logits, [row(), row(temperature=1.0), row()]) == (wanted[0], NOT_FINITE, wanted[2])


def test_sample_seeded_row_does_not_depend_on_its_neighbours() -> None:
    logits = scores(4)
    alone = choose(logits[2:3], [row(seed=5, temperature=1.5, top_p=0.95)])
    crowd = [row(seed=1, temperature=0.7, top_k=3), row(), row(seed=5, temperature=1.5, top_p=0.95), row(top_k=2)]
    assert choose(logits, crowd)[2] == alone[0]


def test_sample_frequencies_follow_the_distribution() -> None:
    logits = torch.full((1, VOCAB), -30.0)
    logits[0, :3] = torch.tensor([0.0, 1.0, 2.0])
    draws = [choose(logits, [row(seed=seed, temperature=2.0)])[0] for seed in range(3000)]
    wanted = (logits[0] / 2.0).softmax(-1)[:3]
    found = torch.tensor([draws.count(token) / 3000 for token in range(3)])
    assert torch.allclose(found, wanted, atol=0.03)


def test_sample_top_k_one_is_greedy_at_any_temperature() -> None:
    logits = scores(1)
    assert {choose(logits, [row(seed=seed, temperature=9.0, top_k=1)]) for seed in range(50)} == {
        (int(logits.argmax()),)
    }


def test_uniform_differs_by_seed_and_step_and_stays_in_range() -> None:
    draws = [uniform(seed, step) for seed in (0, 1, 2**63 - 1) for step in range(200)]
    assert len(set(draws)) == len(draws)
    assert 0 <= min(draws) < 0.05 < 0.95 < max(draws) < 1


def test_sample_logprobs_are_of_the_raw_logits() -> None:
    logits = scores(2)
    past, length = history([], [])
    rows = [row(), row(temperature=3.0, seed=3, num_logprobs=2)]
    output = sample(logits, rows, plan_sampling(rows, CPU), past, length)[1]
    raw = logits[1].log_softmax(-1)
    assert set(output.logprobs) == {1}
    found = output.logprobs[1]
    assert found.logprob == pytest.approx(float(raw[found.token_id]))
    assert [top.token_id for top in found.top] == raw.topk(2).indices.tolist()

import sys

import pytest

from jaxalign.batches import ROW_VOCABULARY, VOCABULARY, bind, check, resolve, signature
from jaxalign.errors import ConfigError


def loss(logp_BT, mask_BT, weight_B=7, *, beta, power=2):
    return logp_BT, mask_BT, weight_B, beta, power


def never():
    raise AssertionError("called without need")


def test_bind_draws_arguments_and_options_by_name():
    available = {"mask_BT": 2, "logp_BT": lambda: 1, "ref_logp_BT": never}
    assert bind(loss, available, {"beta": 3}) == (1, 2, 7, 3, 2)
    assert bind(loss, available | {"weight_B": 0}, {"beta": 3, "power": 4}) == (1, 2, 0, 3, 4)


def test_a_value_is_made_once_per_call():
    calls = []
    bind(loss, {"mask_BT": 2, "logp_BT": lambda: calls.append(1)}, {"beta": 3})
    assert calls == [1]


def test_signature_says_what_is_required():
    assert signature(loss) == ({"logp_BT": True, "mask_BT": True, "weight_B": False}, {"beta": True, "power": False})


@pytest.mark.parametrize(
    "available, options, words",
    [
        ({"mask_BT"}, {"beta"}, r"loss asks for logp_BT \(log-probability of .*cannot give.*can give: mask_BT"),
        ({"mask_BT", "old_logp_BT"}, {"beta"}, "did you mean 'old_logp_BT'"),
        ({"mask_BT", "logp_BT"}, {"beta", "powr"}, "no option 'powr'; did you mean 'power'; it has: beta, power"),
        ({"mask_BT", "logp_BT"}, set(), "needs the option beta"),
        (set(), {"beta"}, "asks for logp_BT .*, mask_BT .*it can give: nothing"),
    ],
)
def test_check_names_what_is_missing_and_what_there_is(available, options, words):
    with pytest.raises(ConfigError, match=words):
        check(loss, available, options)


def test_bind_calls_nothing_when_a_name_is_missing():
    with pytest.raises(ConfigError, match="mask_BT"):
        bind(loss, {"logp_BT": never}, {"beta": 1})


def test_a_batch_name_after_the_star_is_explained():
    with pytest.raises(ConfigError, match="put it before the `\\*`"):
        check(lambda logp_BT, *, mask_BT: None, {"logp_BT", "mask_BT"}, {})


def test_an_option_before_the_star_is_explained():
    with pytest.raises(ConfigError, match="beta \\(not a name of the vocabulary\\).*Options belong after a `\\*`"):
        check(lambda logp_BT, beta: None, {"logp_BT"}, {"beta"})


@pytest.mark.parametrize("function", [lambda *args: None, lambda **kwargs: None])
def test_collecting_parameters_are_refused(function):
    with pytest.raises(ConfigError, match="every argument needs a name"):
        signature(function)


def test_resolve_from_the_table():
    assert resolve("dpo", {"dpo": loss}) is loss


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_bound_losses.py").write_text("def my_loss(logp_BT):\n    return logp_BT\n\nNUMBER = 3\n")
    (tmp_path / "my_broken.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("my_bound_losses", None)


def test_resolve_by_path(module):
    function = resolve("my_bound_losses:my_loss", {})
    assert bind(function, {"logp_BT": 5}, {}) == 5


@pytest.mark.parametrize(
    "name, words",
    [
        ("dop", "no function 'dop'; did you mean 'dpo'; expected one of dpo, ppo, or"),
        ("no_such_module:f", "no module 'no_such_module' on the Python path.*PYTHONPATH"),
        ("my_bound_losses.deeper:f", "no module 'my_bound_losses.deeper'"),
        ("my_bound_losses:my_los", "no function 'my_los'; did you mean 'my_loss'; it has: my_loss"),
        ("my_bound_losses:NUMBER", "no function 'NUMBER'"),
        ("my_bound_losses:", "no function ''"),
        (":my_loss", "no function ':my_loss'"),
    ],
)
def test_resolve_errors(module, name, words):
    with pytest.raises(ConfigError, match=words):
        resolve(name, {"dpo": loss, "ppo": loss})


def test_a_module_that_fails_by_itself_shows_its_own_error(module):
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        resolve("my_broken:f", {})


def test_vocabulary_names_carry_their_shapes():
    for name, meaning in VOCABULARY.items():
        assert name.rsplit("_", 1)[1] in {"B", "BT", "BR"} and meaning


def test_what_rewards_ask_for_is_explained_too():
    assert not set(ROW_VOCABULARY) & set(VOCABULARY) and all(ROW_VOCABULARY.values())
    with pytest.raises(ConfigError, match=r"answer \(what a verifier looks for.*which this stage cannot give"):
        check(lambda response, answer: None, {"response"}, {})

    class Judge:
        def __call__(self, logits):
            """An instance has no name of its own."""

    with pytest.raises(ConfigError, match="^Judge asks for logits"):
        check(Judge(), {"response"}, {})

"""selfspec completion bash: a script that completes verbs, groups, options and settings on the command line.

The script holds all names, so that a completion starts no Python. It is written again after an update.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from omegaconf import OmegaConf

from experiments.config.composing import composing, flat, groups, unchecked
from experiments.config.help import of_use
from experiments.config.schema import VERBS
from selfspec.errors import InputError, unknown_name

USAGE = "selfspec completion bash > ~/.local/share/bash-completion/completions/selfspec"
SHELLS = ("bash",)
OTHERS = {"runs": "list show compare", "doctor": "", "export": "format=speculators", "completion": "bash"}

SCRIPT = """# Completion of selfspec for bash, written by `selfspec completion bash`.
_selfspec() {
    local line="${COMP_LINE:0:COMP_POINT}" names="" values=""
    local cur="${line##* }"
    local -a words=($line)
    if [[ "${line#* }" != *" "* ]]; then
        names="@VERBS@"
    else
        case "${words[1]}" in
@CASES@
        esac
    fi
    [[ "$cur" == *=* ]] && names="$values"
    COMPREPLY=($(compgen -W "$names" -- "$cur"))
    if [[ "$cur" == *=* && "$COMP_WORDBREAKS" == *=* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${cur%%=*}="}")  # bash completes what follows the sign alone
    fi
    [[ ${#COMPREPLY[@]} == 1 && "${COMPREPLY[0]}" == *= ]] && compopt -o nospace 2>/dev/null
    return 0
}
complete -o default -F _selfspec selfspec"""


def completion(words: Sequence[str], say: Callable[[str], None]) -> None:
    """Print the script of a shell.

    Raises:
        InputError: without the name of a shell, or with that of another one.
    """
    if {"-h", "--help"} & set(words):
        return say(USAGE)
    if len(words) != 1:
        raise InputError(f"completion takes the name of a shell: {USAGE}")
    if words[0] not in SHELLS:
        raise unknown_name("shell", words[0], list(SHELLS))
    say(script())


def script() -> str:
    """The script for bash."""
    with composing():
        cases = [_case(verb, *_names(verb)) for verb in VERBS]
    cases += [_case(verb, names, "") for verb, names in OTHERS.items()]
    return SCRIPT.replace("@VERBS@", " ".join((*VERBS, *OTHERS))).replace("@CASES@", "\n".join(cases))


def _case(verb: str, names: str, values: str) -> str:
    return f'            {verb}) names="{names}"; values="{values}" ;;'


def _names(verb: str) -> tuple[str, str]:
    """The names of settings and groups of a verb, and the options of the groups, as words."""
    own = sorted(groups(verb))
    keys = [key for key in flat(OmegaConf.to_container(unchecked(verb, []), resolve=False)) if "_target_" not in key]
    chosen = [f"{group}={name}" for group in own for name in of_use(verb, group)]
    return " ".join([*(f"{key}=" for key in dict.fromkeys([*own, *keys])), "--help"]), " ".join(chosen)

"""`cnctl completion SHELL`: made from the parser that reads the command line, so that the two agree."""

from __future__ import annotations

import argparse

from cloud_network.api.cnctl.failure import OK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cloud_network.api.cnctl.source import Source

FILES = ("FILE", "DIRECTORY")


class Place:
    """One point of the command line: the words that lead there, and what may come next, each with its meaning."""

    def __init__(self, path: tuple[str, ...], parser: argparse.ArgumentParser):
        self.path = path
        self.words: dict[str, str] = {}
        self.options: dict[str, str] = {}
        self.with_file: list[str] = []
        self.with_value: list[str] = []
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                self.words |= {choice.dest: _first(choice.help) for choice in action._choices_actions}
            elif action.option_strings:
                self.options |= dict.fromkeys(action.option_strings, _first(action.help))
                if action.metavar and action.nargs is None:
                    (self.with_file if action.metavar in FILES else self.with_value).extend(action.option_strings)
            elif action.choices:
                self.words |= dict.fromkeys(map(str, action.choices), "")

    @property
    def function(self) -> str:
        """A name for it."""
        return "_".join(("_cnctl_at", *self.path))


def places(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Iterator[Place]:
    """This point and all below it."""
    yield Place(path, parser)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from places(below, (*path, name))


def run(arguments: argparse.Namespace, _: Source) -> int:
    """Print the script."""
    from cloud_network.api.cnctl.main import parser

    print({"bash": _bash, "zsh": _zsh, "fish": _fish}[arguments.shell](list(places(parser()))))
    return OK


def _first(text: str | None) -> str:
    return (text or "").replace("%%", "%").replace("`", "").rstrip(".")


def _cases(found: list[Place]) -> Iterator[str]:
    """Follow the words so far from place to place; an option's value is skipped."""
    for place in found:
        for word in place.words:
            below = " ".join((*place.path, word))
            if any(" ".join(other.path) == below for other in found):
                yield f'      "{" ".join((*place.path, word))}") at="{below}" ;;'


def _valued(found: list[Place], kind: str) -> str:
    return "|".join(sorted({option for place in found for option in getattr(place, kind)}))


_BASH = """\
# bash completion of cnctl, made by `cnctl completion bash`
_cnctl() {{
  local at="" skip="" word index
  COMPREPLY=()
  for ((index = 1; index < COMP_CWORD; index++)); do
    word="${{COMP_WORDS[index]}}"
    if [[ -n $skip ]]; then skip=""; continue; fi
    case "$word" in
      {skipped}) skip=1; continue ;;
    esac
    case "${{at:+$at }}$word" in
{cases}
    esac
  done
  case "${{COMP_WORDS[COMP_CWORD - 1]}}" in
    {files}) compopt -o filenames; COMPREPLY=($(compgen -f -- "$2")); return ;;
    {values}) return ;;
  esac
  case "$at" in
{offers}
  esac
}}
complete -F _cnctl cnctl"""


def _bash(found: list[Place]) -> str:
    files, values = _valued(found, "with_file"), _valued(found, "with_value")
    offers = "\n".join(
        f'    "{" ".join(place.path)}") COMPREPLY=($(compgen -W "'
        f'{" ".join(place.words)}$([[ $2 == -* || -z "{" ".join(place.words)}" ]] && echo " {" ".join(place.options)}")'
        '" -- "$2")) ;;'
        for place in found
    )
    cases = "\n".join(_cases(found))
    return _BASH.format(skipped=f"{files}|{values}", cases=cases, files=files, values=values, offers=offers)


def _quoted(text: str) -> str:
    return text.replace("'", "’")


def _zsh(found: list[Place]) -> str:
    lines = ["#compdef cnctl", "# made by `cnctl completion zsh`"]
    for place in found:
        words = " ".join(f"'{word}:{_quoted(what)}'" for word, what in place.words.items())
        options = " ".join(f"'{option}:{_quoted(what)}'" for option, what in place.options.items())
        lines += [
            f"{place.function}() {{",
            f"  local -a words_ options_; words_=({words}); options_=({options})",
            "  (( $#words_ )) && _describe -t commands command words_",
            "  [[ $PREFIX == -* || $#words_ == 0 ]] && _describe -o -t options option options_",
            "  return 0",
            "}",
        ]
    files, values = _valued(found, "with_file"), _valued(found, "with_value")
    lines += [
        "_cnctl() {",
        "  local at='' word skip=''",
        "  case ${words[CURRENT-1]} in",
        f"    {files}) _files; return ;;",
        f"    {values}) return ;;",
        "  esac",
        "  for word in ${words[2,CURRENT-1]}; do",
        "    if [[ -n $skip ]]; then skip=''; continue; fi",
        f"    case $word in {files}|{values}) skip=1; continue ;; esac",
        '    case "${at:+$at }$word" in',
        *_cases(found),
        "    esac",
        "  done",
        "  ${:-_cnctl_at${at:+_}${at// /_}}",
        "}",
        'if [[ "$funcstack[1]" == _cnctl ]]; then _cnctl "$@"; else compdef _cnctl cnctl; fi',
    ]
    return "\n".join(lines)


def _fish(found: list[Place]) -> str:
    lines = ["# fish completion of cnctl, made by `cnctl completion fish`", "complete -c cnctl -f"]
    for place in found:
        seen = [f"__fish_seen_subcommand_from {word}" for word in place.path]
        below = [" ".join(place.words)] if place.words else []
        lacks = [f"not __fish_seen_subcommand_from {words}" for words in below]
        here = "; and ".join(seen + lacks) or "true"
        lines += [
            f"complete -c cnctl -n '{here}' -a {word}" + (f" -d '{_quoted(what)}'" if what else "")
            for word, what in place.words.items()
        ]
        for option, what in place.options.items():
            flag = f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
            value = " -r -F" if option in place.with_file else " -x" if option in place.with_value else ""
            lines.append(f"complete -c cnctl -n '{here}' {flag}{value} -d '{_quoted(what)}'")
    return "\n".join(lines)

"""Read and write YAML by the core schema of version 1.2, which says what is a number, what is true, and what is text.

Data only: no tags, so no objects. And bounded: a few lines of aliases to aliases stand for billions of values, which
PyYAML makes one by one wherever a mapping is merged.
"""

from __future__ import annotations

import itertools
import re
from typing import Any

import yaml

from search_spaces.errors import expected

MOST_BYTES = 2**20  # of a space file: PyYAML reads 120 kB of short values a second
MOST_DEEP = 40

# YAML 1.2.2, section 10.3.2. PyYAML reads YAML 1.1, to which `on` is true, 010 is 8, 1:30 is 90, 1_000 is 1000, a date
# is a date, and 5e-4 and 1e3 are texts. Of 1.1 only the merge key `<<` stays, which 1.2 dropped and people use.
_CORE = {
    "null": r"null|Null|NULL|~|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "merge": r"<<",
}
_RESOLVERS = [(f"tag:yaml.org,2002:{kind}", re.compile(rf"(?:{form})\Z")) for kind, form in _CORE.items()]
# What some reader of YAML 1.1 takes for a boolean, though PyYAML does not.
_BOOL_1_1 = ("tag:yaml.org,2002:bool", re.compile(r"[yYnN]\Z"))


class Loader(yaml.SafeLoader):
    """PyYAML's loader, but for the schema; it has no tags."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if (tag := getattr(event, "tag", None)) is not None:
            raise _error(f"got the tag {tag!r}; a value needs none: quotes make it text", event)
        return super().compose_node(parent, index)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = node.value
        if len(text) > 80:  # Python refuses to spell one of more than 4,300 digits, which 0x may well have
            raise _error(expected("an integer of at most 80 characters", text), node)
        return int(text[2:], {"0o": 8, "0x": 16}[text[:2]]) if text[:2] in ("0o", "0x") else int(text)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        text = node.value.lower()
        return float(text.replace(".", "") if text.endswith(("inf", "nan")) else text)


Loader.yaml_implicit_resolvers = {None: _RESOLVERS}
Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)
Loader.add_constructor("tag:yaml.org,2002:float", Loader.construct_yaml_float)


class Dumper(yaml.SafeDumper):
    """PyYAML's dumper, which quotes what YAML 1.1 would not read as text; here also what YAML 1.2 would not."""

    def analyze_scalar(self, scalar: str) -> Any:
        found: Any = super().analyze_scalar(scalar)
        if re.search("[\x85\u2028\u2029]", scalar):  # line ends in YAML 1.1, none in 1.2: as escapes they are neither
            found.allow_flow_plain = found.allow_block_plain = found.allow_single_quoted = found.allow_block = False
        return found


Dumper.yaml_implicit_resolvers = yaml.SafeDumper.yaml_implicit_resolvers | {None: [*_RESOLVERS, _BOOL_1_1]}


def dump(data: Any) -> str:
    """Return plain data as a document that readers of YAML 1.1 and of 1.2 take for the same."""
    return yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True)


def compose(text: str) -> tuple[Loader, yaml.Node | None]:
    """Return what constructs the text's one document, and the document as nodes; None for an empty one.

    Raise a yaml.YAMLError for no YAML, a tag, nesting that is too deep, and aliases that stand for too much.
    """
    loader = Loader(text)
    try:
        root = loader.get_single_node()
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    if root:
        _check_size(root, max(len(text), MOST_BYTES))
    return loader, root


def _check_size(root: yaml.Node, most: int) -> None:
    """Count every value as often as it is constructed. No text without aliases has more of them than characters."""
    waiting = [(root, 0)]
    for left in itertools.count(most, -1):
        if not waiting:
            return
        node, depth = waiting.pop()
        if depth > MOST_DEEP:
            raise _error(f"expected at most {MOST_DEEP} lists and mappings in each other, aliases expanded", node)
        if left < 0:
            raise _error(f"expected at most {most:,} values, aliases expanded", node)
        if isinstance(node, yaml.SequenceNode):
            waiting += [(item, depth + 1) for item in node.value]
        elif isinstance(node, yaml.MappingNode):
            waiting += [(part, depth + 1) for pair in node.value for part in pair]


def _error(what: str, at: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, what, at.start_mark)


def load(text: str) -> Any:
    """Return the data of a text, None for an empty one; raise a yaml.YAMLError if it is none."""
    loader, root = compose(text)
    return loader.construct_document(root) if root else None

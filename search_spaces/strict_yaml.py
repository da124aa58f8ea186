"""YAML that can do no harm, by the core schema of YAML 1.2: what is a number, what is true, and that all else is text.

Data only: no tags, so no objects either; and bounded, because a few lines of aliases to aliases stand for billions of
values, which PyYAML makes one by one wherever a mapping is merged.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from search_spaces.errors import short

MOST_VALUES = 4_000_000  # PyYAML takes 60 s and 2 GiB for as many
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
    """PyYAML's, but for the schema and the bounds."""

    def __init__(self, text: str, most: int = MOST_VALUES):
        super().__init__(text)
        self._left = self.most = most

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        self._left -= 1
        if self._left < 0:
            what = f"found more than {self.most:,} values"
            raise yaml.constructor.ConstructorError(None, None, what, event.start_mark)
        if getattr(event, "tag", None) is not None:
            what = f"found the tag {event.tag!r}; a value needs none: quotes make it a text"  # pyright: ignore
            raise yaml.constructor.ConstructorError(None, None, what, event.start_mark)
        return super().compose_node(parent, index)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = node.value
        if len(text) > 80:  # Python refuses to spell one of more than 4,300 digits, which 0x may well have
            what = f"{short(text)} is no integer of at most 80 characters"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark)
        return int(text[2:], {"0o": 8, "0x": 16}[text[:2]]) if text[:2] in ("0o", "0x") else int(text)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        text = node.value.lower()
        return float(text.replace(".", "") if text.endswith(("inf", "nan")) else text)


Loader.yaml_implicit_resolvers = {None: _RESOLVERS}
Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)
Loader.add_constructor("tag:yaml.org,2002:float", Loader.construct_yaml_float)


class Dumper(yaml.SafeDumper):
    """PyYAML's, which quotes what YAML 1.1 would not read as a text; here also what YAML 1.2 would not."""

    def analyze_scalar(self, scalar: str) -> Any:
        found: Any = super().analyze_scalar(scalar)
        if re.search("[\x85\u2028\u2029]", scalar):  # line ends in YAML 1.1, none in 1.2: as escapes they are neither
            found.allow_flow_plain = found.allow_block_plain = found.allow_single_quoted = found.allow_block = False
        return found


Dumper.yaml_implicit_resolvers = yaml.SafeDumper.yaml_implicit_resolvers | {None: [*_RESOLVERS, _BOOL_1_1]}


def dump(data: Any) -> str:
    """Plain data as a document that readers of YAML 1.1 and of 1.2 take for the same."""
    return yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True)


def compose(text: str, most: int = MOST_VALUES) -> tuple[Loader, yaml.Node | None]:
    """The text's one document as nodes, and what constructs them; None for an empty one.

    Raises:
        yaml.YAMLError: it is no YAML, has a tag, is nested too deeply, or stands for more than `most` values.
    """
    loader = Loader(text, most)
    try:
        root = loader.get_single_node()
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    left = most
    waiting = [(root, 0)] if root else []
    while waiting:
        node, depth = waiting.pop()
        left -= 1
        if left < 0 or depth > MOST_DEEP:
            much = f"nested more than {MOST_DEEP} deep" if depth > MOST_DEEP else f"of more than {most:,} values"
            raise yaml.constructor.ConstructorError(None, None, f"a document {much}, aliases expanded", node.start_mark)
        if isinstance(node, yaml.SequenceNode):
            waiting += [(item, depth + 1) for item in node.value]
        elif isinstance(node, yaml.MappingNode):
            waiting += [(part, depth + 1) for pair in node.value for part in pair]
    return loader, root


def load(text: str, most: int = MOST_VALUES) -> Any:
    """The data of a text; None for an empty one.

    Raises:
        yaml.YAMLError: as `compose`, or a merge of what is no mapping, or an integer that Python cannot read.
    """
    loader, root = compose(text, most)
    return loader.construct_document(root) if root else None

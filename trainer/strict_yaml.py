"""YAML that can do no harm, and numbers as people write them.

Data only: no tags, so no objects either; and bounded, because a few lines of aliases to aliases stand for billions of
values, which PyYAML makes one by one wherever a mapping is merged.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from trainer.problems import short

MOST_VALUES = 4_000_000  # PyYAML takes 60 s and 2 GiB for as many
MOST_DEEP = 40


class Loader(yaml.SafeLoader):
    """PyYAML reads YAML 1.1, to which 5e-4 and 1e3 are strings and 2024-01-31 is none; here as in YAML 1.2."""

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
        try:
            if len(node.value) <= 80:  # Python refuses to spell one of more than 4,300 digits, which 0x may well have
                return super().construct_yaml_int(node)
        except ValueError:  # 0x_
            pass
        what = f"{short(node.value)} is no integer of at most 80 characters"
        raise yaml.constructor.ConstructorError(None, None, what, node.start_mark)


_NOT_IN_1_2 = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value")
Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in forms if tag not in _NOT_IN_1_2]
    for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\.\d+|\d+(\.\d*)?)[eE][-+]?\d+$", re.ASCII), list("-+0123456789.")
)
Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)


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

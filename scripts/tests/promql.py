"""Which figures and labels a PromQL expression asks for: enough of the language for our own rules and dashboards."""

import re

# Words of the language that are no figure, where no parenthesis follows that makes a function of them.
WORDS = {"and", "or", "unless", "bool", "by", "without", "on", "ignoring", "group_left", "group_right", "offset", "inf", "nan"}
GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
NAME = re.compile(r"(?<![\w.:])[a-zA-Z_:][\w:]*")
SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)\{([^}]*)\}")
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
DURATION = re.compile(r"\[[^\]]*\]")
NUMBER = re.compile(r"(?<![\w.])\d[\w.]*")


def figures(expression):
    """The names of the series that are asked for."""
    bare = GROUPING.sub(" ", expression)
    bare = SELECTOR.sub(r"\1 ", bare)
    bare = NUMBER.sub(" ", DURATION.sub(" ", bare))
    found = set()
    for match in NAME.finditer(bare):
        is_function = bare[match.end():].lstrip().startswith("(")
        if not is_function and match.group().lower() not in WORDS:
            found.add(match.group())
    return found


def matched(expression):
    """(figure, label, operator, value) of each condition."""
    return {
        (figure, *matcher)
        for figure, conditions in SELECTOR.findall(expression)
        for matcher in MATCHER.findall(conditions)
    }


def grouped(expression):
    """The labels that are grouped by."""
    return {label.strip() for group in GROUPING.findall(expression) for label in group.split(",") if label.strip()}

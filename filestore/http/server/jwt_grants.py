"""What the claims of a JSON Web Token permit: by claims that are made for filestore, or by a file of rules."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from filestore.core.names import is_namespace
from filestore.core.scopes import Scope
from filestore.errors import InvalidContent

RULES_LIMIT = 200
"""The most rules of a file."""
PREFIX_LIMIT = 255
SCOPE_PREFIX = "filestore:"
"""What a scope begins with in a token: `filestore:read`. Others in the same claim are not for this server."""

_SCOPES = {f"{SCOPE_PREFIX}{scope}": scope for scope in Scope}
_FIELDS = ("when", "namespace", "scope", "prefix")
_Value = str | int | bool


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token permits."""

    namespace: str
    scope: Scope
    prefix: str
    source: str
    """Names the rule that gives it. A rule that is changed has another name."""


class Grants(Protocol):
    """Decides what claims permit."""

    def find(self, claims: Mapping[str, Any]) -> Grant:
        """Return what the claims permit. Raises InvalidContent if that is nothing."""
        ...

    def sources(self, namespace: str) -> Sequence[str]:
        """Return the sources of all grants that there can be for a namespace."""
        ...


@dataclass(frozen=True, slots=True)
class ClaimNames:
    """Grants of tokens that have claims for filestore."""

    namespace: str
    scope: str
    prefix: str | None

    def find(self, claims: Mapping[str, Any]) -> Grant:
        namespace, stated = claims.get(self.namespace), claims.get(self.scope)
        prefix = "" if self.prefix is None else claims.get(self.prefix)
        words = stated.split() if isinstance(stated, str) else stated
        scopes = [_SCOPES[word] for word in words if isinstance(word, str) and word in _SCOPES] if isinstance(words, list) else []
        if not _is_namespace(namespace):
            raise InvalidContent("its claim of a namespace is missing or not valid")
        if not scopes:
            raise InvalidContent("its claim of scopes names no scope of filestore")
        if not _is_prefix(prefix):
            raise InvalidContent("its claim of a prefix is missing or not valid")
        return Grant(str(namespace), max(scopes), str(prefix), "claims")

    def sources(self, namespace: str) -> Sequence[str]:  # noqa: ARG002  # each namespace
        return ("claims",)


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule: what a token with certain claims permits."""

    when: Mapping[str, Any]
    grant: Grant


@dataclass(frozen=True, slots=True)
class Rules:
    """Grants by a list of rules, of which the first that fits counts."""

    rules: tuple[Rule, ...]

    def find(self, claims: Mapping[str, Any]) -> Grant:
        for rule in self.rules:
            if _fits(rule.when, claims):
                return rule.grant
        raise InvalidContent("no rule fits its claims")

    def sources(self, namespace: str) -> Sequence[str]:
        return [rule.grant.source for rule in self.rules if rule.grant.namespace == namespace]


def parse_rules(content: bytes) -> Rules:
    """Return the rules of a file in YAML or JSON. Raises InvalidContent, which names the rule that is wrong."""
    import yaml  # noqa: PLC0415  # most servers have no rules

    try:
        document = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise InvalidContent("it is not valid YAML") from None
    if not isinstance(document, list) or len(document) > RULES_LIMIT:
        raise InvalidContent(f"it is not a list of at most {RULES_LIMIT} rules")
    return Rules(tuple(_rule(number, found) for number, found in enumerate(document, 1)))


def _rule(number: int, found: object) -> Rule:
    fault = _rule_fault(found)
    if fault or not isinstance(found, dict):
        raise InvalidContent(f"rule {number} {fault}")
    source = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
    grant = Grant(found["namespace"], Scope.parse(found["scope"]), found.get("prefix", ""), source)
    return Rule(found["when"], grant)


def _rule_fault(found: object) -> str:
    """Return what is wrong with a rule, or an empty text."""
    if not isinstance(found, dict) or not set(found) <= set(_FIELDS) or not {"when", "namespace", "scope"} <= set(found):
        return f"must have the keys when, namespace and scope, may have the key prefix, and no other of {', '.join(_FIELDS)}"
    # Without a condition, a rule would fit the token of everyone whom the issuer knows.
    if not isinstance(found["when"], dict) or not _is_condition(found["when"]):
        return "needs conditions: `when` has claims, each with a text, a number, true, false, a list of these, or claims below it"
    if not _is_namespace(found["namespace"]):
        return "has a namespace that is not valid"
    if found["scope"] not in [str(scope) for scope in Scope]:
        return f"has a scope that does not exist; give one of {', '.join(map(str, Scope))}"
    return "" if _is_prefix(found.get("prefix", "")) else "has a prefix that is not valid"


def _is_condition(value: object) -> bool:
    if isinstance(value, dict):
        return bool(value) and all(isinstance(name, str) and _is_condition(below) for name, below in value.items())
    if isinstance(value, list):
        return bool(value) and all(isinstance(each, _Value) for each in value)
    return isinstance(value, _Value)


def _fits(expected: object, found: object) -> bool:
    """Return whether a claim has what a rule asks for: this value, one of these values, or a list with one of them."""
    if isinstance(expected, dict):
        return isinstance(found, dict) and all(name in found and _fits(value, found[name]) for name, value in expected.items())
    wanted = expected if isinstance(expected, list) else [expected]
    given = found if isinstance(found, list) else [found]
    # By the type too: in Python, 1 is equal to True.
    return any(type(each) is type(value) and each == value for each in given for value in wanted)


def _is_namespace(value: object) -> bool:
    return isinstance(value, str) and is_namespace(value)


def _is_prefix(value: object) -> bool:
    return isinstance(value, str) and len(value) <= PREFIX_LIMIT and value.isprintable()

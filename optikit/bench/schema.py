"""The JSON schema of a study, for editors: structure, names, and each factory's arguments."""

from typing import Any

from optikit.bench.signature import Parameter, registry, signature
from optikit.bench.spec import Study

_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string", type(None): "null"}
_IMPORT_PATH = {"type": "string", "pattern": "^[A-Za-z_][\\w.]*:\\S+$"}


def study_schema() -> dict[str, Any]:
    """A JSON schema (draft 2020-12) that accepts what `load_study` accepts, and completes names.

    It cannot look into a user's own modules, nor into optax: their arguments are left to
    `optikit config check`.
    """
    schema = Study.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "A study of optikit"
    definitions = schema["$defs"]
    for section in ("problems", "optimizers"):
        schema["properties"][section]["additionalProperties"] = False  # labels follow the pattern
    _enrich(definitions["ProblemUse"], registry("optikit.problems", "PROBLEMS"))
    _enrich(definitions["OptimizerUse"], registry("optikit.optimizers", "OPTIMIZERS"), free=True)
    return schema


def _enrich(definition: dict[str, Any], known: dict[str, str], *, free: bool = False) -> None:
    """Name the factories, and describe their arguments where their signature can be read.

    Args:
      free: other names are possible too: optax's transformations, peers.
    """
    names = sorted(known)
    choices: list[dict[str, Any]] = [{"enum": names}, _IMPORT_PATH]
    if free:
        choices.append({"type": "string"})
    definition["properties"]["use"] = {
        "description": "a name, or module:function of your own",
        "anyOf": choices,
    }
    cases = []
    for name in names:
        declared = signature(known[name]) if known[name] else None
        if declared is None:
            continue
        arguments = {p.name: _described(p) for p in declared.parameters}
        then: dict[str, Any] = {"description": declared.summary, "properties": arguments}
        if not declared.open:
            own = {key: True for key in definition["properties"] if key not in arguments}
            then["properties"] = own | arguments
            then["additionalProperties"] = False
        then["required"] = ["use", *(p.name for p in declared.parameters if p.required)]
        cases.append({"if": {"properties": {"use": {"const": name}}}, "then": then})
    definition["allOf"] = cases


def _described(parameter: Parameter) -> dict[str, Any]:
    """The schema of an argument: a value, or a sweep or search space over values."""
    if parameter.choices:
        plain: dict[str, Any] = {"enum": list(parameter.choices)}
    elif parameter.types:
        plain = {"type": [_TYPES[t] for t in parameter.types]}
    else:
        return {}
    return {"anyOf": [plain, {"type": "object", "minProperties": 1}]}

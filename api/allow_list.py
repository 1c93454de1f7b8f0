"""Which URIs a tenant's jobs may name."""

from __future__ import annotations

from api.allowed_hub import is_allowed
from api.settings import Settings
from strucprune_core.errors import InvalidSpec
from strucprune_core.plan.places import NamesPlaces, named_uris
from strucprune_core.storage.uri import canonical, contains, parse_uri


class UriNotAllowed(InvalidSpec):
    """The job names a URI that its tenant may not use."""

    code = "uri_not_allowed"


def uri_issues(job: NamesPlaces, tenant: str, settings: Settings) -> list[UriNotAllowed]:
    """One error for each URI of the job that its tenant may not use."""
    uris = named_uris(job).items()
    refusals = ((field, refusal(uri, tenant, settings)) for field, uri in uris)
    return [
        UriNotAllowed(found[0], field=field, remedy=found[1])
        for field, found in refusals
        if found is not None
    ]


def refusal(uri: str, tenant: str, settings: Settings) -> tuple[str, str] | None:
    """Why the tenant may not use the URI, and what to do; None if it may."""
    location = parse_uri(uri)
    if location.scheme == "hf":
        return _hub_refusal(location.bucket, tenant, settings)
    if location.scheme == "file":
        if not settings.allow_local_files:
            return "local paths are not allowed here", "Use s3://bucket/key."
        if not location.key.startswith("/"):
            return "a local path must be absolute", "Give it from the root: /directory/name."
    place, state = canonical(uri), canonical(settings.state_uri)
    # A job must neither read other jobs' state nor publish over it.
    if contains(state, place) or contains(place, state):
        return "this prefix belongs to the service itself", "Choose another prefix."
    if not settings.allowed_prefixes:
        return None
    allowed = settings.allowed_prefixes.get(tenant, ())
    if any(contains(canonical(root), place) for root in allowed):
        return None
    reason = "this prefix is not among those that your organisation may use"
    if not allowed:
        return reason, "Ask the service's operator for one."
    return reason, f"Use a prefix below {', '.join(root.rstrip('/') for root in allowed)}."


def _hub_refusal(repository: str, tenant: str, settings: Settings) -> tuple[str, str] | None:
    known = settings.hub_repositories
    patterns = [*known.get(tenant, ()), *known.get("*", ())]
    if is_allowed(repository, patterns):
        return None
    reason = f"your organisation may not read {repository} of a hub here"
    if not patterns:
        return reason, "Ask the service's operator to allow it, or copy the files to s3://."
    return reason, f"Use one of: {', '.join(f'hf://{pattern}' for pattern in patterns)}."

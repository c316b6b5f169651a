from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Route(_message.Message):
    __slots__ = ("routespec", "target", "data", "namespace", "mod_revision", "hold", "last_activity_ms")
    ROUTESPEC_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    MOD_REVISION_FIELD_NUMBER: _ClassVar[int]
    HOLD_FIELD_NUMBER: _ClassVar[int]
    LAST_ACTIVITY_MS_FIELD_NUMBER: _ClassVar[int]
    routespec: str
    target: str
    data: str
    namespace: str
    mod_revision: int
    hold: Hold
    last_activity_ms: int
    def __init__(self, routespec: _Optional[str] = ..., target: _Optional[str] = ..., data: _Optional[str] = ..., namespace: _Optional[str] = ..., mod_revision: _Optional[int] = ..., hold: _Optional[_Union[Hold, _Mapping]] = ..., last_activity_ms: _Optional[int] = ...) -> None: ...

class Hold(_message.Message):
    __slots__ = ("since_ms", "until_ms")
    SINCE_MS_FIELD_NUMBER: _ClassVar[int]
    UNTIL_MS_FIELD_NUMBER: _ClassVar[int]
    since_ms: int
    until_ms: int
    def __init__(self, since_ms: _Optional[int] = ..., until_ms: _Optional[int] = ...) -> None: ...

class Change(_message.Message):
    __slots__ = ("put", "delete")
    PUT_FIELD_NUMBER: _ClassVar[int]
    DELETE_FIELD_NUMBER: _ClassVar[int]
    put: Route
    delete: str
    def __init__(self, put: _Optional[_Union[Route, _Mapping]] = ..., delete: _Optional[str] = ...) -> None: ...

class Precondition(_message.Message):
    __slots__ = ("route_revision", "table_revision")
    ROUTE_REVISION_FIELD_NUMBER: _ClassVar[int]
    TABLE_REVISION_FIELD_NUMBER: _ClassVar[int]
    route_revision: RouteRevision
    table_revision: int
    def __init__(self, route_revision: _Optional[_Union[RouteRevision, _Mapping]] = ..., table_revision: _Optional[int] = ...) -> None: ...

class RouteRevision(_message.Message):
    __slots__ = ("routespec", "mod_revision")
    ROUTESPEC_FIELD_NUMBER: _ClassVar[int]
    MOD_REVISION_FIELD_NUMBER: _ClassVar[int]
    routespec: str
    mod_revision: int
    def __init__(self, routespec: _Optional[str] = ..., mod_revision: _Optional[int] = ...) -> None: ...

class WriteRequest(_message.Message):
    __slots__ = ("changes", "preconditions", "namespace", "session", "sequence", "wait_for_proxies_ms", "hub_epoch", "retry", "deletes_expected", "deletes_to_come")
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    PRECONDITIONS_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    WAIT_FOR_PROXIES_MS_FIELD_NUMBER: _ClassVar[int]
    HUB_EPOCH_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    DELETES_EXPECTED_FIELD_NUMBER: _ClassVar[int]
    DELETES_TO_COME_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[Change]
    preconditions: _containers.RepeatedCompositeFieldContainer[Precondition]
    namespace: str
    session: bytes
    sequence: int
    wait_for_proxies_ms: int
    hub_epoch: int
    retry: bool
    deletes_expected: int
    deletes_to_come: int
    def __init__(self, changes: _Optional[_Iterable[_Union[Change, _Mapping]]] = ..., preconditions: _Optional[_Iterable[_Union[Precondition, _Mapping]]] = ..., namespace: _Optional[str] = ..., session: _Optional[bytes] = ..., sequence: _Optional[int] = ..., wait_for_proxies_ms: _Optional[int] = ..., hub_epoch: _Optional[int] = ..., retry: bool = ..., deletes_expected: _Optional[int] = ..., deletes_to_come: _Optional[int] = ...) -> None: ...

class OpenHubRequest(_message.Message):
    __slots__ = ("namespace", "hub")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    HUB_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    hub: bytes
    def __init__(self, namespace: _Optional[str] = ..., hub: _Optional[bytes] = ...) -> None: ...

class OpenHubResponse(_message.Message):
    __slots__ = ("hub_epoch",)
    HUB_EPOCH_FIELD_NUMBER: _ClassVar[int]
    hub_epoch: int
    def __init__(self, hub_epoch: _Optional[int] = ...) -> None: ...

class WriteResponse(_message.Message):
    __slots__ = ("revision", "epoch", "changed", "proxies_live", "proxies_synced", "proxies_lagging", "held")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    PROXIES_LIVE_FIELD_NUMBER: _ClassVar[int]
    PROXIES_SYNCED_FIELD_NUMBER: _ClassVar[int]
    PROXIES_LAGGING_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    revision: int
    epoch: int
    changed: bool
    proxies_live: int
    proxies_synced: int
    proxies_lagging: _containers.RepeatedScalarFieldContainer[str]
    held: int
    def __init__(self, revision: _Optional[int] = ..., epoch: _Optional[int] = ..., changed: bool = ..., proxies_live: _Optional[int] = ..., proxies_synced: _Optional[int] = ..., proxies_lagging: _Optional[_Iterable[str]] = ..., held: _Optional[int] = ...) -> None: ...

class SettleHeldRequest(_message.Message):
    __slots__ = ("settlement", "routes")
    class Settlement(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        SETTLEMENT_UNSPECIFIED: _ClassVar[SettleHeldRequest.Settlement]
        CONFIRM: _ClassVar[SettleHeldRequest.Settlement]
        REJECT: _ClassVar[SettleHeldRequest.Settlement]
    SETTLEMENT_UNSPECIFIED: SettleHeldRequest.Settlement
    CONFIRM: SettleHeldRequest.Settlement
    REJECT: SettleHeldRequest.Settlement
    SETTLEMENT_FIELD_NUMBER: _ClassVar[int]
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    settlement: SettleHeldRequest.Settlement
    routes: _containers.RepeatedCompositeFieldContainer[RouteRevision]
    def __init__(self, settlement: _Optional[_Union[SettleHeldRequest.Settlement, str]] = ..., routes: _Optional[_Iterable[_Union[RouteRevision, _Mapping]]] = ...) -> None: ...

class SettleHeldResponse(_message.Message):
    __slots__ = ("revision", "settled")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    revision: int
    settled: int
    def __init__(self, revision: _Optional[int] = ..., settled: _Optional[int] = ...) -> None: ...

class ReportActivityRequest(_message.Message):
    __slots__ = ("routes",)
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    routes: _containers.RepeatedCompositeFieldContainer[RouteActivity]
    def __init__(self, routes: _Optional[_Iterable[_Union[RouteActivity, _Mapping]]] = ...) -> None: ...

class RouteActivity(_message.Message):
    __slots__ = ("routespec", "mod_revision", "age_ms")
    ROUTESPEC_FIELD_NUMBER: _ClassVar[int]
    MOD_REVISION_FIELD_NUMBER: _ClassVar[int]
    AGE_MS_FIELD_NUMBER: _ClassVar[int]
    routespec: str
    mod_revision: int
    age_ms: int
    def __init__(self, routespec: _Optional[str] = ..., mod_revision: _Optional[int] = ..., age_ms: _Optional[int] = ...) -> None: ...

class ReportActivityResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("routespec",)
    ROUTESPEC_FIELD_NUMBER: _ClassVar[int]
    routespec: str
    def __init__(self, routespec: _Optional[str] = ...) -> None: ...

class GetResponse(_message.Message):
    __slots__ = ("route", "revision", "epoch")
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    route: Route
    revision: int
    epoch: int
    def __init__(self, route: _Optional[_Union[Route, _Mapping]] = ..., revision: _Optional[int] = ..., epoch: _Optional[int] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("namespace", "prefix", "held", "as_json")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    AS_JSON_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    prefix: str
    held: bool
    as_json: bool
    def __init__(self, namespace: _Optional[str] = ..., prefix: _Optional[str] = ..., held: bool = ..., as_json: bool = ...) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("revision", "epoch", "routes", "total", "digest", "json")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    JSON_FIELD_NUMBER: _ClassVar[int]
    revision: int
    epoch: int
    routes: _containers.RepeatedCompositeFieldContainer[Route]
    total: int
    digest: bytes
    json: str
    def __init__(self, revision: _Optional[int] = ..., epoch: _Optional[int] = ..., routes: _Optional[_Iterable[_Union[Route, _Mapping]]] = ..., total: _Optional[int] = ..., digest: _Optional[bytes] = ..., json: _Optional[str] = ...) -> None: ...

class SubscribeRequest(_message.Message):
    __slots__ = ("start", "ack", "target_refused")
    START_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    TARGET_REFUSED_FIELD_NUMBER: _ClassVar[int]
    start: Start
    ack: Ack
    target_refused: RouteRevision
    def __init__(self, start: _Optional[_Union[Start, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ..., target_refused: _Optional[_Union[RouteRevision, _Mapping]] = ...) -> None: ...

class Start(_message.Message):
    __slots__ = ("has_table", "cluster_id", "epoch", "revision", "name", "proxy")
    HAS_TABLE_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROXY_FIELD_NUMBER: _ClassVar[int]
    has_table: bool
    cluster_id: str
    epoch: int
    revision: int
    name: str
    proxy: bool
    def __init__(self, has_table: bool = ..., cluster_id: _Optional[str] = ..., epoch: _Optional[int] = ..., revision: _Optional[int] = ..., name: _Optional[str] = ..., proxy: bool = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("revision", "digest")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    revision: int
    digest: bytes
    def __init__(self, revision: _Optional[int] = ..., digest: _Optional[bytes] = ...) -> None: ...

class SubscribeResponse(_message.Message):
    __slots__ = ("hello", "snapshot_chunk", "delta", "bookmark", "go_away")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_CHUNK_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    BOOKMARK_FIELD_NUMBER: _ClassVar[int]
    GO_AWAY_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    snapshot_chunk: SnapshotChunk
    delta: bytes
    bookmark: Bookmark
    go_away: GoAway
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., snapshot_chunk: _Optional[_Union[SnapshotChunk, _Mapping]] = ..., delta: _Optional[bytes] = ..., bookmark: _Optional[_Union[Bookmark, _Mapping]] = ..., go_away: _Optional[_Union[GoAway, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("mode", "cluster_id", "epoch", "revision", "replica", "lineage")
    class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        MODE_UNSPECIFIED: _ClassVar[Hello.Mode]
        RESUME: _ClassVar[Hello.Mode]
        SNAPSHOT: _ClassVar[Hello.Mode]
    MODE_UNSPECIFIED: Hello.Mode
    RESUME: Hello.Mode
    SNAPSHOT: Hello.Mode
    MODE_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    mode: Hello.Mode
    cluster_id: str
    epoch: int
    revision: int
    replica: str
    lineage: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, mode: _Optional[_Union[Hello.Mode, str]] = ..., cluster_id: _Optional[str] = ..., epoch: _Optional[int] = ..., revision: _Optional[int] = ..., replica: _Optional[str] = ..., lineage: _Optional[_Iterable[str]] = ...) -> None: ...

class SnapshotChunk(_message.Message):
    __slots__ = ("routes", "checksum", "last", "total", "digest")
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    routes: bytes
    checksum: int
    last: bool
    total: int
    digest: bytes
    def __init__(self, routes: _Optional[bytes] = ..., checksum: _Optional[int] = ..., last: bool = ..., total: _Optional[int] = ..., digest: _Optional[bytes] = ...) -> None: ...

class RouteList(_message.Message):
    __slots__ = ("routes",)
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    routes: _containers.RepeatedCompositeFieldContainer[Route]
    def __init__(self, routes: _Optional[_Iterable[_Union[Route, _Mapping]]] = ...) -> None: ...

class Delta(_message.Message):
    __slots__ = ("from_revision", "to_revision", "puts", "deletes")
    FROM_REVISION_FIELD_NUMBER: _ClassVar[int]
    TO_REVISION_FIELD_NUMBER: _ClassVar[int]
    PUTS_FIELD_NUMBER: _ClassVar[int]
    DELETES_FIELD_NUMBER: _ClassVar[int]
    from_revision: int
    to_revision: int
    puts: _containers.RepeatedCompositeFieldContainer[Route]
    deletes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, from_revision: _Optional[int] = ..., to_revision: _Optional[int] = ..., puts: _Optional[_Iterable[_Union[Route, _Mapping]]] = ..., deletes: _Optional[_Iterable[str]] = ...) -> None: ...

class Bookmark(_message.Message):
    __slots__ = ("revision", "digest", "leader_contact_age_ms", "leader_known")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    LEADER_CONTACT_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    LEADER_KNOWN_FIELD_NUMBER: _ClassVar[int]
    revision: int
    digest: bytes
    leader_contact_age_ms: int
    leader_known: bool
    def __init__(self, revision: _Optional[int] = ..., digest: _Optional[bytes] = ..., leader_contact_age_ms: _Optional[int] = ..., leader_known: bool = ...) -> None: ...

class GoAway(_message.Message):
    __slots__ = ("reason", "retry_after_ms")
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        REASON_UNSPECIFIED: _ClassVar[GoAway.Reason]
        SHUTDOWN: _ClassVar[GoAway.Reason]
        BEHIND: _ClassVar[GoAway.Reason]
    REASON_UNSPECIFIED: GoAway.Reason
    SHUTDOWN: GoAway.Reason
    BEHIND: GoAway.Reason
    REASON_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    reason: GoAway.Reason
    retry_after_ms: int
    def __init__(self, reason: _Optional[_Union[GoAway.Reason, str]] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

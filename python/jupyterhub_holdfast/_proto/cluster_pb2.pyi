from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    PRISTINE: _ClassVar[Role]
    LEARNER: _ClassVar[Role]
    FOLLOWER: _ClassVar[Role]
    CANDIDATE: _ClassVar[Role]
    LEADER: _ClassVar[Role]
    RETIRED: _ClassVar[Role]
ROLE_UNSPECIFIED: Role
PRISTINE: Role
LEARNER: Role
FOLLOWER: Role
CANDIDATE: Role
LEADER: Role
RETIRED: Role

class BackupRequest(_message.Message):
    __slots__ = ("stale_ok",)
    STALE_OK_FIELD_NUMBER: _ClassVar[int]
    stale_ok: bool
    def __init__(self, stale_ok: bool = ...) -> None: ...

class BackupChunk(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("cluster_id", "name", "node_id", "version", "role", "leader_id", "term", "last_log_index", "committed_index", "applied_index", "epoch", "revision", "digest", "routes", "ready", "leader_contact_age_ms", "members", "subscribers", "waiting_for", "lineage", "problem", "disk_sync_us", "disk_slow", "held", "held_until_ms")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    LEADER_ID_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    LAST_LOG_INDEX_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_INDEX_FIELD_NUMBER: _ClassVar[int]
    APPLIED_INDEX_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    LEADER_CONTACT_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    SUBSCRIBERS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FOR_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    DISK_SYNC_US_FIELD_NUMBER: _ClassVar[int]
    DISK_SLOW_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    HELD_UNTIL_MS_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    name: str
    node_id: int
    version: str
    role: Role
    leader_id: int
    term: int
    last_log_index: int
    committed_index: int
    applied_index: int
    epoch: int
    revision: int
    digest: bytes
    routes: int
    ready: bool
    leader_contact_age_ms: int
    members: _containers.RepeatedCompositeFieldContainer[Member]
    subscribers: _containers.RepeatedCompositeFieldContainer[SubscriberStatus]
    waiting_for: str
    lineage: _containers.RepeatedScalarFieldContainer[str]
    problem: str
    disk_sync_us: int
    disk_slow: bool
    held: int
    held_until_ms: int
    def __init__(self, cluster_id: _Optional[str] = ..., name: _Optional[str] = ..., node_id: _Optional[int] = ..., version: _Optional[str] = ..., role: _Optional[_Union[Role, str]] = ..., leader_id: _Optional[int] = ..., term: _Optional[int] = ..., last_log_index: _Optional[int] = ..., committed_index: _Optional[int] = ..., applied_index: _Optional[int] = ..., epoch: _Optional[int] = ..., revision: _Optional[int] = ..., digest: _Optional[bytes] = ..., routes: _Optional[int] = ..., ready: bool = ..., leader_contact_age_ms: _Optional[int] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., subscribers: _Optional[_Iterable[_Union[SubscriberStatus, _Mapping]]] = ..., waiting_for: _Optional[str] = ..., lineage: _Optional[_Iterable[str]] = ..., problem: _Optional[str] = ..., disk_sync_us: _Optional[int] = ..., disk_slow: bool = ..., held: _Optional[int] = ..., held_until_ms: _Optional[int] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("node_id", "name", "peer_address", "client_address", "voter", "matched_index", "contact_age_ms")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PEER_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    VOTER_FIELD_NUMBER: _ClassVar[int]
    MATCHED_INDEX_FIELD_NUMBER: _ClassVar[int]
    CONTACT_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    name: str
    peer_address: str
    client_address: str
    voter: bool
    matched_index: int
    contact_age_ms: int
    def __init__(self, node_id: _Optional[int] = ..., name: _Optional[str] = ..., peer_address: _Optional[str] = ..., client_address: _Optional[str] = ..., voter: bool = ..., matched_index: _Optional[int] = ..., contact_age_ms: _Optional[int] = ...) -> None: ...

class MemberListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MemberListResponse(_message.Message):
    __slots__ = ("cluster_id", "leader_id", "members", "node_id_max", "waits_for")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    LEADER_ID_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_MAX_FIELD_NUMBER: _ClassVar[int]
    WAITS_FOR_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    leader_id: int
    members: _containers.RepeatedCompositeFieldContainer[Member]
    node_id_max: int
    waits_for: str
    def __init__(self, cluster_id: _Optional[str] = ..., leader_id: _Optional[int] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., node_id_max: _Optional[int] = ..., waits_for: _Optional[str] = ...) -> None: ...

class MemberAddRequest(_message.Message):
    __slots__ = ("name", "peer_address")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PEER_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    name: str
    peer_address: str
    def __init__(self, name: _Optional[str] = ..., peer_address: _Optional[str] = ...) -> None: ...

class MemberPromoteRequest(_message.Message):
    __slots__ = ("names",)
    NAMES_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, names: _Optional[_Iterable[str]] = ...) -> None: ...

class MemberRemoveRequest(_message.Message):
    __slots__ = ("names",)
    NAMES_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, names: _Optional[_Iterable[str]] = ...) -> None: ...

class MemberReplaceRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class LeaderMoveRequest(_message.Message):
    __slots__ = ("to_name",)
    TO_NAME_FIELD_NUMBER: _ClassVar[int]
    to_name: str
    def __init__(self, to_name: _Optional[str] = ...) -> None: ...

class LeaderMoveResponse(_message.Message):
    __slots__ = ("from_name", "to_name", "took_ms")
    FROM_NAME_FIELD_NUMBER: _ClassVar[int]
    TO_NAME_FIELD_NUMBER: _ClassVar[int]
    TOOK_MS_FIELD_NUMBER: _ClassVar[int]
    from_name: str
    to_name: str
    took_ms: int
    def __init__(self, from_name: _Optional[str] = ..., to_name: _Optional[str] = ..., took_ms: _Optional[int] = ...) -> None: ...

class SubscriberStatus(_message.Message):
    __slots__ = ("name", "address", "proxy", "acknowledged_revision", "digest", "connected_ms")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PROXY_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_REVISION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_MS_FIELD_NUMBER: _ClassVar[int]
    name: str
    address: str
    proxy: bool
    acknowledged_revision: int
    digest: bytes
    connected_ms: int
    def __init__(self, name: _Optional[str] = ..., address: _Optional[str] = ..., proxy: bool = ..., acknowledged_revision: _Optional[int] = ..., digest: _Optional[bytes] = ..., connected_ms: _Optional[int] = ...) -> None: ...

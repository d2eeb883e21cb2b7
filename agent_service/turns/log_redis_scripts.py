"""What replicas keep of turns in Redis: the keys, and the scripts that are the only ones to write them.

Of a turn: `log`, a stream with the ids `<sequence>-0`, so that writing twice changes nothing and "after a sequence" is
a range; `meta`, a hash: fingerprint, owner, epoch, status, and at the end last, usage, failure; `owner`, which lapses
when the replica that runs the turn is gone; `stop`, a flag; `followers`, a sorted set whose scores are the times at
which the entries lapse. All share a hash tag, and all expire. Every clock is the server's.

Of the replicas: `alive`, a hash: `beat`, the last time that any replica was heard, and `since`, from when on they were
heard without a break; `stores`, a sorted set of the replicas that have a store of documents of their own.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

Argument = str | int | bytes
Call = tuple[Argument, ...]
"""A command of Redis with its arguments."""

STOPS = "turns:stops"
"""The channel on which stops are told, each by the turn's tag."""

OWNER_MS = 5_000
"""After so long without a word its owner is taken for gone. Followers elsewhere hear of it within 6 s."""

FOLLOWER_MS = 5_000
"""After so long without a word a follower is taken for gone."""

RUNNING_MS = 600_000
"""What becomes of a turn that nobody ends or looks at: its keys expire. The owner renews this every second."""

GAP_MS = 2_500
"""Replicas are heard every second; a longer silence means that they could not reach Redis, or it them."""

ALIVE_MS = 60_000


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one turn."""

    tag: str

    def __getattr__(self, name: str) -> str:
        """`log`, `meta`, `owner`, `stop` or `followers`."""
        return f"turn:{{{self.tag}}}:{name}"


ALIVE, STORES = "turns:{replicas}:alive", "turns:{replicas}:stores"

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

_LAST = """
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local last = newest and tonumber(string.match(newest[1], '^%d+')) or 0
"""

# KEYS meta owner log; ARGV replica, fingerprint, running_ms, owner_ms, create
# A claim of this replica whose reply was lost is made again: it shows in an owner that has written nothing.
_CLAIM = """
local meta = redis.call('HMGET', KEYS[1], 'fingerprint', 'owner', 'epoch', 'status')
if meta[1] and meta[1] ~= ARGV[2] then return 'other' end
local lost = meta[2] == ARGV[1] and meta[3] == '1' and meta[4] == 'running' and redis.call('EXISTS', KEYS[3]) == 0
if meta[1] and not lost then return 'exists' end
if ARGV[5] == '0' then return meta[1] and 'exists' or 'absent' end
redis.call('HSET', KEYS[1], 'fingerprint', ARGV[2], 'owner', ARGV[1], 'epoch', 1, 'status', 'running')
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[4])
return 'created'
"""

# KEYS log meta owner stop followers; ARGV replica, epoch, fingerprint, base, running_ms, owner_ms,
# status, keep_ms, end, usage, failure, and the payloads of base + 1, base + 2, ...
# Returns what became of it, the newest sequence in the log, whether a stop was asked, and the followers elsewhere.
_WRITE = (
    """
local meta = redis.call('HMGET', KEYS[2], 'owner', 'epoch')
if meta[1] and (meta[1] ~= ARGV[1] or meta[2] ~= ARGV[2]) then return {'fenced', 0, 0, 0} end
if not meta[1] then
  redis.call('HSET', KEYS[2], 'fingerprint', ARGV[3], 'owner', ARGV[1], 'epoch', ARGV[2], 'status', 'running')
end
"""
    + _LAST
    + """
local base = tonumber(ARGV[4])
if last >= base then
  for place = 12, #ARGV do
    local sequence = base + place - 11
    if sequence > last then
      redis.call('XADD', KEYS[1], string.format('%d-0', sequence), 'e', ARGV[place])
      last = sequence
    end
  end
end
if ARGV[7] ~= 'running' and last == tonumber(ARGV[9]) then
  redis.call('HSET', KEYS[2], 'status', ARGV[7], 'last', ARGV[9], 'usage', ARGV[10], 'failure', ARGV[11])
  redis.call('DEL', KEYS[3], KEYS[4], KEYS[5])
  redis.call('PEXPIRE', KEYS[1], ARGV[8])
  redis.call('PEXPIRE', KEYS[2], ARGV[8])
  return {'ended', last, 0, 0}
end
redis.call('SET', KEYS[3], ARGV[1], 'PX', ARGV[6])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
redis.call('PEXPIRE', KEYS[2], ARGV[5])
"""
    + _NOW
    + """
redis.call('ZREMRANGEBYSCORE', KEYS[5], '-inf', now)
return {'running', last, redis.call('EXISTS', KEYS[4]), redis.call('ZCARD', KEYS[5])}
"""
)

# KEYS log meta owner followers; ARGV after, count, follower_ms, member or ''
# Returns nothing, or: status, epoch, owned, last, failure, and pairs of id and payload.
_READ = (
    """
local meta = redis.call('HMGET', KEYS[2], 'status', 'epoch', 'last', 'failure')
if not meta[1] then return {} end
if ARGV[4] ~= '' and meta[1] == 'running' then
"""
    + _NOW
    + """
  redis.call('ZADD', KEYS[4], now + ARGV[3], ARGV[4])
  redis.call('PEXPIRE', KEYS[4], ARGV[3])
end
"""
    + _LAST
    + """
local reply = {meta[1], meta[2], redis.call('EXISTS', KEYS[3]), tonumber(meta[3]) or last, meta[4] or ''}
if ARGV[2] ~= '0' then
  local first = string.format('%d-0', ARGV[1] + 1)
  for _, entry in ipairs(redis.call('XRANGE', KEYS[1], first, '+', 'COUNT', ARGV[2])) do
    reply[#reply + 1] = entry[1]
    reply[#reply + 1] = entry[2][2]
  end
end
return reply
"""
)

# KEYS log meta owner stop followers; ARGV epoch, failure, keep_ms
_CONDEMN = (
    """
local meta = redis.call('HMGET', KEYS[2], 'status', 'epoch')
if meta[1] ~= 'running' or meta[2] ~= ARGV[1] or redis.call('EXISTS', KEYS[3]) == 1 then return 0 end
"""
    + _LAST
    + """
redis.call('HSET', KEYS[2], 'status', 'failed', 'epoch', ARGV[1] + 1, 'last', last, 'usage', '', 'failure', ARGV[2])
redis.call('DEL', KEYS[4], KEYS[5])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
"""
)

# KEYS log meta owner stop; ARGV running_ms (0: only look), channel, tag
# Returns nothing, or: status, epoch, owned, last, usage.
_STOP = (
    """
local meta = redis.call('HMGET', KEYS[2], 'status', 'epoch', 'last', 'usage')
if not meta[1] then return {} end
if meta[1] == 'running' and ARGV[1] ~= '0' then
  redis.call('SET', KEYS[4], 1, 'PX', ARGV[1])
  redis.call('PUBLISH', ARGV[2], ARGV[3])
end
"""
    + _LAST
    + """
return {meta[1], meta[2], redis.call('EXISTS', KEYS[3]), tonumber(meta[3]) or last, meta[4] or ''}
"""
)

# KEYS followers
_COUNT = (
    _NOW
    + """
return redis.call('ZCOUNT', KEYS[1], now, '+inf')
"""
)

# KEYS log meta owner stop followers; ARGV replica
_RELEASE = """
if redis.call('HGET', KEYS[2], 'owner') == ARGV[1] then redis.call('UNLINK', unpack(KEYS)) end
return 1
"""

# KEYS alive stores; ARGV gap_ms, alive_ms, replica, or '' where it has no store of its own, store_ms
# Returns how many other replicas have a store of their own.
_BEAT = (
    _NOW
    + """
local beat = tonumber(redis.call('HGET', KEYS[1], 'beat'))
if not beat or now - beat > tonumber(ARGV[1]) then redis.call('HSET', KEYS[1], 'since', now) end
redis.call('HSET', KEYS[1], 'beat', now)
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
if ARGV[3] == '' then return 0 end
redis.call('ZADD', KEYS[2], now + ARGV[4], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return redis.call('ZCARD', KEYS[2]) - 1
"""
)

# KEYS alive; ARGV gap_ms. Returns for how many ms replicas were heard without a break, up to now; else -1.
_SETTLED = (
    _NOW
    + """
local alive = redis.call('HMGET', KEYS[1], 'beat', 'since')
if not alive[1] or now - alive[1] > tonumber(ARGV[1]) then return -1 end
return now - alive[2]
"""
)

SCRIPTS = {
    name: (hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), text)
    for name, text in (
        ("claim", _CLAIM), ("write", _WRITE), ("read", _READ), ("condemn", _CONDEMN), ("stop", _STOP),
        ("count", _COUNT), ("release", _RELEASE), ("beat", _BEAT), ("settled", _SETTLED),
    )
}  # fmt: skip
"""By name: what Redis calls the script, and its text."""


def script(name: str, keys: Sequence[str], *arguments: Argument) -> Call:
    """The call of a script."""
    return ("EVALSHA", SCRIPTS[name][0], len(keys), *keys, *arguments)


def settled() -> Call:
    """Asks for how long replicas were heard without a break."""
    return script("settled", (ALIVE,), GAP_MS)


def read(keys: Keys, after: int, count: int, member: str | None) -> Call:
    """Asks for events after a sequence; renews the follower, if any."""
    return script("read", (keys.log, keys.meta, keys.owner, keys.followers), after, count, FOLLOWER_MS, member or "")


def condemn(keys: Keys, epoch: int, failure: bytes, keep_ms: int) -> Call:
    """Declares a turn lost whose owner is gone."""
    return script("condemn", (keys.log, keys.meta, keys.owner, keys.stop, keys.followers), epoch, failure, keep_ms)

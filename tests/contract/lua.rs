//! Redis's Lua: what commands give to a script, what a script may give to commands, and what becomes of its result. Our script
//! needs a part of it; the next one another.

use super::*;

/// What goes over from a command to Lua and back.
const SCRIPTS: [&str; 61] = [
    // Results.
    "return",
    "return nil",
    "return true",
    "return false",
    "return 42",
    "return -1.9",
    "return 1e15 + 0.5",
    "return 'text'",
    "return ARGV[1]",
    "return #KEYS + #ARGV",
    "return {}",
    "return {1, nil, 3}",
    "return {1, false, 'x', {2.5, true}}",
    "return {one = 1}",
    "return {ok = 'fine'}",
    "return {err = 'ERR bad'}",
    "return redis.call",
    "return 1, 2",
    // What commands give.
    "return redis.call('SET', 'a', '1')",
    "return redis.call('SET', 'a', '1').ok",
    "return redis.call('SET', 'counter', 1, 'NX') == false",
    "return redis.call('GET', 'nothing') == false",
    "return redis.call('GET', 'nothing')",
    "return redis.call('GET', 'counter')",
    "return redis.call('MGET', 'counter', 'nothing', 'list', 'counter')",
    "return redis.call('MGET', 'counter', 'nothing', 'list')[3] == false",
    "return #redis.call('MGET', unpack({'counter', 'nothing', 'list', 'nothing'}, 1, 3))",
    "return redis.call('EXISTS', 'counter', 'counter', 'nothing')",
    "return redis.call('DEL', 'counter', 'nothing')",
    "return type(redis.call('PTTL', 'counter'))",
    "return {type(redis.call('TIME')[1]), #redis.call('TIME')}",
    "return redis.call('INCRBY', 'counter', 9007199254740993)",
    "redis.call('SET', 'big', '9007199254740993') return redis.call('INCRBY', 'big', 0)",
    // What they take.
    "redis.call('SET', 'a', ARGV[1]) return redis.call('GET', 'a')",
    "redis.call('SET', 'a', 1e15) return redis.call('GET', 'a')",
    "redis.call('SET', 'a', 0.5) return redis.call('GET', 'a')",
    "redis.call('SET', 'a', -2.0) return redis.call('GET', 'a')",
    "redis.call('set', 'a', 'x', 'px', 5000, 'nx') return redis.call('pttl', 'a') > 4000",
    "redis.call('SET', 'a', 'x', 'PX', 5000) redis.call('SET', 'a', 'y', 'KEEPTTL') return redis.call('PTTL', 'a') > 4000",
    "redis.call('SET', 'a', 'x', 'PX', 5000) redis.call('SET', 'a', 'y') return redis.call('PTTL', 'a')",
    "redis.call('SET', 'a', 'x') redis.call('SET', 'a', 'y', 'PXAT', 1) return redis.call('GET', 'a')",
    "return redis.call('SET', 'a', 'x', 'XX')",
    "return redis.call('SET', 'list', 'x')",
    "return redis.call('PEXPIRE', 'nothing', 1)",
    "redis.call('PEXPIRE', 'counter', 0) return redis.call('EXISTS', 'counter')",
    "redis.call('PEXPIRE', 'counter', -1) return redis.call('EXISTS', 'counter')",
    "redis.call('INCRBY', 'new', 5) return redis.call('INCRBY', 'new', -7)",
    "redis.call('SET', 'a', 5, 'PX', 5000) redis.call('INCRBY', 'a', 1) return redis.call('PTTL', 'a') > 4000",
    // Errors that are caught.
    "return type(redis.pcall('GET', 'list'))",
    "return string.find(redis.pcall('GET', 'list').err, 'WRONGTYPE') ~= nil",
    "local ok = pcall(redis.call, 'GET', 'list') return ok",
    "local ok, error = pcall(error, 'mine', 0) return {ok, error}",
    "local ok, error = pcall(error, {mine = 'yes'}) return {ok, error.mine}",
    "return {pcall(function() return 1, 2 end)}",
    "local reply = redis.pcall('NOSUCH') return reply.err ~= nil",
    "local reply = redis.pcall('GET') return reply.err ~= nil",
    "local reply = redis.pcall('SET', 'a', 'x', 'PX', 0) return reply.err ~= nil",
    "local reply = redis.pcall('SET', 'a', 'x', 'NX', 'XX') return reply.err ~= nil",
    "local reply = redis.pcall('SET', 'a', 'x', 'PX', '01') return reply.err ~= nil",
    "local reply = redis.pcall('PEXPIRE', 'counter', '9223372036854775807') return reply.err ~= nil",
    "return pcall(function() return no_such_name end)",
];

/// What no script survives.
const FAILING: [&str; 8] = [
    "return redis.call('GET', 'list')",
    "return redis.call('NOSUCH')",
    "return redis.call()",
    "return redis.call('GET', {})",
    "error('mine')",
    "return no_such_name",
    "a_global = 1",
    "return {1} .. 'x'",
];

#[tokio::test]
async fn lua_and_commands_understand_each_other_as_on_a_server() {
    let mut simulated = Vec::new();
    on_every_node(async |node| {
        let mut answers = Vec::new();
        for script in SCRIPTS.iter().chain(&FAILING) {
            for key in ["a", "big", "new"] {
                node.backstage.delete(key);
            }
            node.backstage.put("counter", b"41", None);
            node.backstage.put_list("list");
            let answer = node.backstage.eval(script, &[b"\0\xff\r\n", b"x"]);
            assert_eq!(answer.is_err(), FAILING.contains(script) || script.contains("{err"), "{script}: {answer:?}");
            answers.push((*script, answer.map_err(|_| "each server has its own words")));
        }
        if simulated.is_empty() {
            simulated = answers;
        } else {
            simulated.iter().zip(&answers).for_each(|(ours, theirs)| assert_eq!(ours, theirs));
        }
    })
    .await;
}

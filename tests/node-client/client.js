// OpenWhisk's official client, unchanged, against a node: NODE_URL, NODE_AUTH, NODE_AUTH_OTHER, NODE_NAMESPACE and the path of
// apps/action/action.wasm in NODE_ACTION. Prints "ok" at the end; an exception ends it with another exit code.
'use strict'
const assert = require('assert')
const fs = require('fs')
const openwhisk = require('openwhisk')

const api = `${process.env.NODE_URL}/api/v1/`
const code = fs.readFileSync(process.env.NODE_ACTION)
const ow = openwhisk({ api, api_key: process.env.NODE_AUTH })
const namespace = process.env.NODE_NAMESPACE

/** Fails with this HTTP status, and a message with this in it. */
async function fails (status, text, promise) {
  await assert.rejects(promise, error => {
    assert.strictEqual(error.statusCode, status, error.message)
    assert.ok(error.message.toLowerCase().includes(text.toLowerCase()), error.message)
    return true
  })
}

/** Activations of non-blocking calls appear when they are over. */
async function activation (id) {
  for (;;) {
    try {
      return await ow.activations.get(id)
    } catch (error) {
      if (error.statusCode !== 404) throw error
    }
  }
}

async function actions () {
  const created = await ow.actions.create({
    name: 'echo',
    action: code,
    kind: 'wasi:default',
    params: { greeting: 'hello', n: 1 },
    annotations: { purpose: 'test' },
    limits: { timeout: 5000, logs: 2 }
  })
  assert.strictEqual(created.version, '0.0.1')
  assert.strictEqual(created.namespace, namespace)
  await fails(409, 'already exists', ow.actions.create({ name: 'echo', action: code, kind: 'wasi:default' }))

  const got = await ow.actions.get('echo')
  assert.ok(Buffer.from(got.exec.code, 'base64').equals(code))
  assert.deepStrictEqual(got.parameters, [{ key: 'greeting', value: 'hello' }, { key: 'n', value: 1 }])
  assert.ok(got.annotations.some(pair => pair.key === 'purpose' && pair.value === 'test'))
  assert.strictEqual(got.limits.timeout, 5000)
  assert.strictEqual((await ow.actions.get({ name: 'echo', code: false })).exec.code, undefined)

  const updated = await ow.actions.update({ name: 'echo', params: { greeting: 'bonjour' } })
  assert.strictEqual(updated.version, '0.0.2')
  assert.strictEqual(updated.limits.timeout, 5000)
  await ow.actions.update({ name: 'other one', action: code, kind: 'wasi:default' })
  const list = await ow.actions.list()
  assert.deepStrictEqual(list.map(action => action.name).sort(), ['echo', 'other one'])
  assert.strictEqual((await ow.actions.list({ limit: 1, skip: 1 })).length, 1)
  assert.strictEqual((await ow.actions.list({ count: true })).actions, 2)
  await ow.actions.delete('other one')
  await fails(404, 'does not exist', ow.actions.get('other one'))
  await fails(404, 'does not exist', ow.actions.delete('other one'))
}

async function calls () {
  const result = await ow.actions.invoke({ name: 'echo', blocking: true, result: true, params: { x: [1, { y: null }] } })
  assert.deepStrictEqual(result, { greeting: 'bonjour', x: [1, { y: null }] })
  const full = await ow.actions.invoke({ name: 'echo', blocking: true, params: { greeting: 'over' } })
  assert.deepStrictEqual(full.response.result, { greeting: 'over' })
  assert.ok(full.response.success && full.response.status === 'success')
  assert.strictEqual(full.name, 'echo')
  assert.strictEqual((await ow.activations.get(full.activationId)).activationId, full.activationId)
  const absolute = await ow.actions.invoke({ name: `/${namespace}/echo`, blocking: true, result: true })
  assert.strictEqual(absolute.greeting, 'bonjour')

  const logged = await ow.actions.invoke({ name: 'echo', params: { do: 'logs' } })
  assert.deepStrictEqual(Object.keys(logged), ['activationId'])
  const over = await activation(logged.activationId)
  assert.deepStrictEqual(over.response.result, { logged: true })
  const { logs } = await ow.activations.logs(logged.activationId)
  assert.strictEqual(logs.length, 2)
  assert.ok(/^\d{4}-\d\d-\d\dT[\d:.]+Z stdout: to stdout$/.test(logs[0]), logs[0])
  assert.ok(logs[1].endsWith(' stderr: to stderr'), logs[1])
  assert.deepStrictEqual((await ow.activations.result(logged.activationId)).result, { logged: true })

  const env = await ow.actions.invoke({ name: 'echo', blocking: true, result: true, params: { do: 'environment' } })
  assert.strictEqual(env.__OW_ACTION_NAME, `/${namespace}/echo`)
  assert.strictEqual(env.__OW_NAMESPACE, namespace)
  assert.strictEqual(env.__OW_ACTION_VERSION, '0.0.2')
  assert.ok(Number(env.__OW_DEADLINE) > Date.now())
  assert.ok((await activation(env.__OW_ACTIVATION_ID)).response.success)
}

async function failures () {
  const call = params => ow.actions.invoke({ name: 'echo', blocking: true, result: true, params })
  await fails(502, 'as asked', call({ do: 'error' }))
  await fails(502, 'code 3', call({ do: 'exit', n: 3 }))
  await fails(502, 'unexpectedly', call({ do: 'trap' }))
  await fails(502, 'valid JSON', call({ do: 'nothing' }))
  await ow.actions.update({ name: 'echo', limits: { timeout: 300 } })
  await fails(502, 'exceeded its time limits of 300', call({ do: 'forever' }))
  await fails(404, 'does not exist', ow.actions.invoke({ name: 'nobody', blocking: true }))
  await fails(400, 'nodejs:default', ow.actions.create({ name: 'js', action: 'function main() {}' }))
  await fails(400, 'not a WebAssembly module', ow.actions.create({ name: 'js', action: Buffer.from('x'), kind: 'wasi:default' }))
  await fails(400, 'timeout', ow.actions.update({ name: 'echo', limits: { timeout: 1 } }))
  await fails(400, 'activation id', ow.activations.get('nonsense'))
  await fails(404, 'does not exist', ow.activations.get('0'.repeat(32)))

  const failed = await ow.activations.list({ name: 'echo', limit: 5 })
  assert.strictEqual(failed[0].statusCode, 2)
  assert.ok(failed[0].start >= failed[4].start)
  const docs = await ow.activations.list({ limit: 1, docs: true })
  assert.ok(docs[0].response.result.error.includes('time limits'))
  assert.deepStrictEqual(await ow.activations.list({ upto: 1 }), [])
}

async function strangers () {
  const wrong = openwhisk({ api, api_key: 'a:b' })
  await fails(401, 'authentication', wrong.actions.list())
  const other = openwhisk({ api, api_key: process.env.NODE_AUTH_OTHER })
  assert.deepStrictEqual(await other.actions.list(), [])
  await fails(403, 'not authorized', other.actions.get({ name: 'echo', namespace }))
  await fails(403, 'not authorized', other.actions.invoke({ name: `/${namespace}/echo`, blocking: true }))
  await fails(404, 'does not exist', other.actions.get('echo'))
  const [mine] = await ow.activations.list({ limit: 1 })
  await fails(404, 'does not exist', other.activations.get(mine.activationId))
}

async function main () {
  assert.deepStrictEqual(await ow.namespaces.list(), [namespace])
  await actions()
  await calls()
  await failures()
  await strangers()
  console.log('ok')
}

main().catch(error => {
  console.error(error)
  process.exit(1)
})

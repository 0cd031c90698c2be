// Node's fetch: a body in each direction, and what was left is noticed.
import { createHash } from 'node:crypto'

const [base, length] = [process.argv[2], Number(process.argv[3])]
const body = Buffer.alloc(length, Buffer.from(Array.from({ length: 251 }, (_, at) => at)))
const expected = createHash('sha256').update(body).digest('hex')
const expect = (so, what) => { if (!so) throw new Error(what) }

const pieces = async function * () {
  for (let at = 0; at < length; at += 60_000) yield body.subarray(at, at + 60_000)
}
const answer = await fetch(`${base}/hash`, { method: 'POST', body: ReadableStream.from(pieces()), duplex: 'half' })
expect((await answer.json()).sha256 === expected, 'up: another hash')

const response = await fetch(`${base}/pattern?bytes=${length}`)
const hash = createHash('sha256')
for await (const piece of response.body) hash.update(piece)
expect(hash.digest('hex') === expected, 'down: another body')

const leaving = new AbortController()
const events = await fetch(`${base}/events?count=100000&ms=5`, { signal: leaving.signal })
const reader = events.body.getReader()
await reader.read()
leaving.abort()
await reader.read().then(() => { throw new Error('an abort was not one') }, () => {})
console.log('up, down, abort')

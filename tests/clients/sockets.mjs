// npm's `ws`: messages, fragments, pings, compression, and both ways to close.
import { createRequire } from 'node:module'
import { once } from 'node:events'

const { WebSocket } = createRequire(`${process.argv[3]}/`)('ws')
const expect = (so, what) => { if (!so) throw new Error(what) }
const url = process.argv[2]

const open = async (options) => {
  const socket = new WebSocket(url, 'echo', options)
  await once(socket, 'open')
  expect(socket.protocol === 'echo', `protocol ${socket.protocol}`)
  return socket
}
const said = async (socket) => {
  const [data, isBinary] = await once(socket, 'message')
  return isBinary ? data : data.toString()
}

const socket = await open({ perMessageDeflate: true })
socket.send('a text')
expect(await said(socket) === 'a text', 'a text')
const large = Buffer.alloc(8 << 20, 'pattern of a large message')
socket.send(large)
expect(large.equals(await said(socket)), 'a large message')
for (const [part, fin] of [['in ', false], ['three ', false], ['fragments', true]]) socket.send(part, { fin })
expect(await said(socket) === 'in three fragments', 'fragments')
// A ping between the fragments of a message.
socket.send('before, ', { fin: false })
socket.ping('are you there')
const [pong] = await once(socket, 'pong')
expect(pong.toString() === 'are you there', 'pong')
socket.send('after', { fin: true })
expect(await said(socket) === 'before, after', 'around a ping')
socket.send('')
expect(await said(socket) === '', 'an empty message')
socket.close(4001, 'enough')
const [code] = await once(socket, 'close')
expect(code === 4001, `closed with ${code}`)

// The server says goodbye first.
const other = await open()
other.send('close')
const [answer] = await once(other, 'close')
expect(answer === 1005, `the server closed with ${answer}`)
console.log('texts, 8 MiB, fragments, pings, closes')
process.exit(0)

// A real browser runs cells in JupyterLab and prints what it saw, a line each.
//
//   node browse_jupyterlab.mjs <base> <true|false> <chromium> <screenshot>
//
// With `true` it says when it is ready to be switched, waits until the file `switched` stands beside the screenshot, and
// runs another cell on the connection that the page makes anew.
import { existsSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'

const [, , base, isSwitched, executablePath, screenshot] = process.argv
const { chromium } = createRequire(`${process.env.NODE_PATH}/`)('playwright-core')
const WAIT = { timeout: 120_000 }
const args = ['--disable-gpu', '--disable-dev-shm-usage', '--no-sandbox', '--no-proxy-server']
const browser = await chromium.launch({ executablePath, args })

/** Prints one observation; what differs at each run has no place in it. */
const saw = (what, value) => console.log(`${what}: ${JSON.stringify(value)}`)
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms))

async function until(what, look) {
  const end = Date.now() + WAIT.timeout
  for (;;) {
    const seen = await look()
    if (seen) return seen
    if (Date.now() > end) throw new Error(`${what}: not within ${WAIT.timeout} ms`)
    await pause(100)
  }
}

try {
  const page = await browser.newPage({ viewport: { width: 1280, height: 900 } })
  const failed = new Set()
  const kernels = []
  page.on('pageerror', (error) => failed.add(error.message))
  page.on('response', (response) => {
    if (response.status() >= 400) failed.add(`${response.status()} ${new URL(response.url()).pathname}`)
  })
  page.on('websocket', (socket) => {
    if (!socket.url().includes('/channels')) return
    const kernel = { frames: 0, isOpen: true }
    kernels.push(kernel)
    socket.on('framereceived', () => { kernel.frames += 1 })
    socket.on('close', () => { kernel.isOpen = false })
  })
  const idle = () => page.waitForSelector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', WAIT)
  const output = (text) => until(text, async () => {
    const outputs = await page.locator('.jp-OutputArea-output').allInnerTexts()
    return outputs.some((one) => one.trim() === text)
  })
  let cells = 0
  const run = async (code) => {
    const cell = page.locator('.jp-Notebook .jp-CodeCell').nth(cells++)
    const editor = cell.locator('.cm-content')
    await editor.click(WAIT)
    await page.keyboard.insertText(code)
    // The notebook takes note of text a moment after it is shown: a cell that is run sooner is empty for it.
    await until(code, async () => {
      await editor.press('Shift+Enter')
      await pause(500)
      return /\d|\*/.test(await cell.locator('.jp-InputPrompt').innerText())
    })
  }

  await page.goto(`${base}/lab?token=t&reset`, { waitUntil: 'load', ...WAIT })
  await page.locator('.jp-LauncherCard[data-category="Notebook"]').first().click(WAIT)
  await page.waitForSelector('.jp-Notebook .jp-CodeCell .cm-content', WAIT)
  await idle()
  await run('x = 41')
  await run('print("answer", x + 1)')
  saw('a cell that knows another', await output('answer 42'))
  await run('from IPython.display import HTML; HTML("<b>bold</b>")')
  saw('an output of HTML', await output('bold'))
  await page.screenshot({ path: screenshot })
  saw('connections to the kernel', kernels.filter((kernel) => kernel.isOpen && kernel.frames > 0).length)
  saw('failed', [...failed].sort())

  if (isSwitched === 'true') {
    failed.clear()
    const before = kernels.length
    console.log('ready to be switched')
    await until('the switch', () => existsSync(join(dirname(screenshot), 'switched')))
    await until('another connection to the kernel', () => kernels.slice(before).some((kernel) => kernel.isOpen && kernel.frames > 0))
    saw('after the switch, failed', [...failed].sort())
    await run('print("still", x)')
    saw('after the switch, the kernel knows what it knew', await output('still 41'))
    await page.screenshot({ path: screenshot })
  }
} catch (error) {
  for (const context of browser.contexts()) await context.pages()[0]?.screenshot({ path: screenshot })
  throw error
} finally {
  await browser.close()
}

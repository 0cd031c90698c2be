// A real browser runs the page of the service, which says in its title how that went.
import { createRequire } from 'node:module'

const [, , url, modules, executablePath] = process.argv
const { chromium } = createRequire(`${modules}/`)('playwright-core')
const args = ['--disable-gpu', '--disable-dev-shm-usage', '--no-sandbox']
const browser = await chromium.launch({ executablePath, args })
try {
  const page = await browser.newPage()
  const failed = []
  page.on('pageerror', (error) => failed.push(error.message))
  page.on('response', (response) => { if (response.status() >= 400) failed.push(`${response.status()} ${response.url()}`) })
  await page.goto(url)
  await page.waitForFunction(() => document.title !== 'running', undefined, { timeout: 60_000 })
  const title = await page.title()
  if (title !== 'passed' || failed.length) throw new Error(`${title} ${failed.join(', ')}`)
  console.log(`EventSource thrice, fetch streams, 20 MiB up, abort, WebSocket; Chromium ${browser.version()}`)
} finally {
  await browser.close()
}

// A browser's page with the live log of a build, in a document without a screen. Prints what the page shows when the build is
// over, as JSON: its state, and the lines of each step. Gives up after five minutes.
//
// usage: page.js HTML CONTROLLER URL     the page's part, the Stimulus controller, and Action Cable's URL

const { JSDOM } = require("jsdom")
const fs = require("fs")

const [html, controller, url] = process.argv.slice(2)
const script = (name) => fs.readFileSync(require.resolve(name), "utf8")
const markup = `<head><meta name="action-cable-url" content="${url}"></head><body>${fs.readFileSync(html, "utf8")}</body>`
const { window } = new JSDOM(markup, { url: url.replace(/^ws/, "http"), runScripts: "outside-only", pretendToBeVisual: true })

window.eval(script("@hotwired/stimulus/dist/stimulus.umd.js"))
window.eval(script("@rails/actioncable/app/assets/javascripts/actioncable.js"))
// A browser takes these from its import map.
const source = fs
  .readFileSync(controller, "utf8")
  .replace(/import (\{.*\}) from "@hotwired\/stimulus"/, "const $1 = Stimulus")
  .replace(/import (\{.*\}) from "@rails\/actioncable"/, "const $1 = ActionCable")
  .replace("export default class", "window.BuildLog = class")
window.eval(`(() => { ${source} })()`)
// Looks for a lost server every second.
window.ActionCable.ConnectionMonitor.staleThreshold = 1
const application = window.Stimulus.Application.start()
application.register("build-log", window.BuildLog)
// The network of a train: each connection is cut after a second.
setInterval(() => application.controllers.forEach(({ consumer }) => consumer.connection.reopen()), 1500)

const state = () => window.document.querySelector("[data-build-log-target=state]").textContent
setTimeout(() => process.exit(1), 300_000)
setInterval(() => {
  if (!/^(succeeded|failed|cancelled|This build)/.test(state())) return
  const steps = [...window.document.querySelectorAll("details")].map((block) => [
    block.querySelector("summary").textContent,
    block.querySelector("pre").textContent.split("\n").slice(0, -1),
  ])
  console.log(JSON.stringify({ state: state(), steps }))
  process.exit(0)
}, 50)

// Search in pages that are opened from a folder: browsers start no worker from file:, so a hidden frame takes its place.
// On a server this does nothing.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super()
      this.onmessage = null
      const frame = document.createElement("iframe")
      frame.style.display = "none"
      frame.receive = (data) => {
        const event = new MessageEvent("message", { data })
        this.dispatchEvent(event)
        if (this.onmessage) this.onmessage(event)
      }
      frame.srcdoc = `<script>
        postMessage = (data) => frameElement.receive(data)
        importScripts = (...urls) => urls.reduce((earlier, url) => earlier.then(() => new Promise((done, fail) => {
          const script = Object.assign(document.createElement("script"), { src: url, onload: done, onerror: fail })
          document.head.append(script)
        })), Promise.resolve())
      <\/script><script src="${url}"><\/script>`
      this.frame = frame
      this.ready = new Promise((done) => frame.addEventListener("load", done, { once: true }))
      document.body.append(frame)
    }

    postMessage(data) {
      this.ready.then(() => {
        const inside = this.frame.contentWindow
        inside.dispatchEvent(new inside.MessageEvent("message", { data }))
      })
    }

    terminate() {
      this.frame.remove()
    }
  }
  window.Worker = window.IFrameWorker
}

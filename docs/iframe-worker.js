/* Pages that are read from the disk have no right to a worker, and the search runs in one. Here a hidden frame of the
   same page stands for it. Over HTTP the browser's own is used. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.waiting = []
      const frame = document.createElement("iframe")
      frame.hidden = true
      frame.addEventListener("load", () => {
        const inside = frame.contentWindow
        inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
        const script = inside.document.createElement("script")
        script.src = url
        script.addEventListener("load", () => {
          this.inside = inside
          this.waiting.splice(0).forEach(data => this.postMessage(data))
        })
        inside.document.head.appendChild(script)
      }, { once: true })
      document.documentElement.appendChild(frame)
    }

    postMessage(data) {
      if (this.inside) this.inside.dispatchEvent(new MessageEvent("message", { data }))
      else this.waiting.push(data)
    }
  }
}

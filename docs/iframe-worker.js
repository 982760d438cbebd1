// Browsers start no worker for a page that is opened from a folder, and the search is one.
// There this stands in: the worker's script runs in a hidden frame, and messages go to and
// from it as they would go to and from a worker.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const scope = frame.contentWindow;
      scope.postMessage = (data) =>
        this.dispatchEvent(new MessageEvent("message", { data }));
      this.ready = new Promise((resolve, reject) => {
        const script = frame.contentDocument.createElement("script");
        script.src = url;
        script.onload = () => resolve(scope);
        script.onerror = () => reject(new Error(`cannot load ${url}`));
        frame.contentDocument.body.append(script);
      });
    }

    postMessage(data) {
      this.ready.then((scope) =>
        scope.dispatchEvent(new MessageEvent("message", { data }))
      );
    }
  };
}

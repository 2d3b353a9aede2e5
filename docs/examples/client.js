// A client for BroadcastRouter, over WebSocket or Server-Sent Events. No dependencies; an ES module for browsers.
//
//   const client = new BroadcastClient({ websocket: "/ws/ann", groups: ["room"] });
//   client.onmessage = (message, group) => …    // group and position only for groups that keep a history
//   client.onreset = (group) => …               // messages may be lost: load afresh what you show
//   client.onstate = (state, attempts) => …     // "connecting" (attempts that failed since the last frame), "open",
//                                               // "closed"; a browser does not say why an attempt failed
//   client.onerror = (frame) => …               // the server's answer to something it could not do
//   client.join("hall"); client.leave("room");
//   client.send({ type: "update", … });         // to the handler of that type; WebSocket only
//   client.publish("room", data);               // WebSocket only, if the server allows it
//   client.close();
//
// It reconnects by itself, with a growing, random delay so that the clients of a restarted server do not come back all
// at once, and continues every group after the last message it has seen. It notices what is missing by the gap in the
// positions and asks for it.

const FIRST_DELAY = 500; // ms before the first attempt to reconnect, at most
const LONGEST_DELAY = 30_000; // ms
const HEARTBEAT = 25_000; // ms between pings; the server closes after 60 s without
const PATIENCE = 10_000; // ms to wait for a pong

export class BroadcastClient {
  onmessage = (message, group, id) => {};
  onreset = (group) => {};
  onstate = (state, attempts) => {};
  onerror = (frame) => {};

  #options;
  #groups; // name → { epoch, offset }, or null while the position is not known
  #socket = null; // a WebSocket or an EventSource
  #attempt = 0;
  #retry = null;
  #heartbeat = null;
  #deadline = null;
  #closed = false;

  // Give `websocket` or `events`: the path or URL of the one or the other. `last`: how many messages to begin with.
  constructor({ websocket = null, events = null, groups = [], last = 0, ...unknown }) {
    if (!websocket === !events) throw new TypeError("give either websocket or events");
    if (Object.keys(unknown).length) throw new TypeError(`unknown options: ${Object.keys(unknown)}`);
    this.#options = { websocket, events, last };
    this.#groups = new Map(groups.map((group) => [group, null]));
    queueMicrotask(() => this.#connect()); // after the caller has set his handlers
  }

  join(group) {
    if (this.#groups.has(group)) return;
    this.#groups.set(group, null);
    this.#options.websocket ? this.#sendJoin(group) : this.#reconnectNow();
  }

  leave(group) {
    if (!this.#groups.delete(group)) return;
    this.#options.websocket ? this.send({ type: "leave", group }) : this.#reconnectNow();
  }

  publish(group, data, idempotency_key) {
    return this.send({ type: "publish", group, data, idempotency_key }); // undefined members are left out
  }

  // Whether it could be sent. What is sent while the line is broken may not arrive: nothing is queued here.
  send(message) {
    if (!this.#options.websocket || this.#socket?.readyState !== WebSocket.OPEN) return false;
    this.#socket.send(JSON.stringify(message));
    return true;
  }

  close() {
    this.#closed = true;
    clearTimeout(this.#retry);
    this.#dispose();
    this.onstate("closed");
  }

  // -- the line

  #connect() {
    if (this.#closed) return;
    this.onstate("connecting", this.#attempt);
    this.#options.websocket ? this.#openSocket() : this.#openEvents();
  }

  #openSocket() {
    const url = this.#url(this.#options.websocket);
    url.protocol = url.protocol.replace("http", "ws");
    const asked = new Set(this.#groups.keys());
    const socket = (this.#socket = new WebSocket(url));
    socket.onopen = () => {
      for (const group of this.#groups.keys()) if (!asked.has(group)) this.#sendJoin(group);
      for (const group of asked) if (!this.#groups.has(group)) this.send({ type: "leave", group });
      this.#heartbeat = setInterval(() => this.#ping(), HEARTBEAT);
      this.onstate("open");
    };
    socket.onmessage = (event) => this.#receive(event.data);
    socket.onclose = () => this.#lost(socket);
  }

  #openEvents() {
    const source = (this.#socket = new EventSource(this.#url(this.#options.events)));
    source.onopen = () => this.onstate("open");
    source.onmessage = (event) => this.#receive(event.data);
    // The browser would reconnect by itself, but not after an error status, nor with a delay that grows.
    source.onerror = () => this.#lost(source);
  }

  // The address with the groups, and the place in each as far as it is known.
  #url(path) {
    const url = new URL(path, location.href);
    const known = [...this.#groups].filter(([, seen]) => seen !== null);
    const cursor = known.map(([group, seen]) => `${encodeURIComponent(group)}=${seen.epoch}:${seen.offset}`).join("&");
    for (const group of this.#groups.keys()) url.searchParams.append("group", group);
    if (cursor) url.searchParams.set("last_event_id", cursor);
    if (this.#options.last) url.searchParams.set("last", this.#options.last);
    return url;
  }

  #lost(socket) {
    if (socket !== this.#socket || this.#closed) return; // one that has been given up already
    this.#dispose();
    const longest = Math.min(LONGEST_DELAY, FIRST_DELAY * 2 ** this.#attempt++);
    this.#retry = setTimeout(() => this.#connect(), Math.random() * longest);
    this.onstate("connecting", this.#attempt);
  }

  #reconnectNow() {
    if (this.#retry === null && this.#socket === null) return; // it has not been connected yet
    clearTimeout(this.#retry);
    this.#dispose();
    this.#connect();
  }

  #dispose() {
    const socket = this.#socket;
    this.#socket = null;
    clearInterval(this.#heartbeat);
    clearTimeout(this.#deadline);
    socket?.close();
  }

  #ping() {
    const socket = this.#socket;
    if (this.send({ type: "ping" })) this.#deadline = setTimeout(() => this.#lost(socket), PATIENCE);
  }

  // -- the frames

  #receive(text) {
    this.#attempt = 0;
    clearTimeout(this.#deadline);
    const frame = JSON.parse(text);
    switch (frame?.type) {
      case "message":
        if ("id" in frame) return this.#receiveNumbered(frame);
        break; // an application's own
      case "joined":
        if ("id" in frame) this.#place(frame.group, frame.id);
        return;
      case "reset":
        this.#place(frame.group, frame.id);
        return this.onreset(frame.group);
      case "error":
        return this.onerror(frame);
      case "pong":
      case "left":
      case "published":
        return;
    }
    this.onmessage(frame);
  }

  #receiveNumbered({ group, id, data }) {
    if (!this.#groups.has(group)) return; // left meanwhile
    const seen = this.#groups.get(group);
    const { epoch, offset } = parse(id);
    if (seen !== null && seen.epoch === epoch && offset <= seen.offset) return; // a second time
    if (seen !== null && (seen.epoch !== epoch || offset > seen.offset + 1)) {
      // something is missing: have it all again from there
      return this.#options.websocket ? this.#sendJoin(group) : this.#reconnectNow();
    }
    this.#place(group, id);
    this.onmessage(data, group, id);
  }

  #sendJoin(group) {
    const seen = this.#groups.get(group);
    const start = seen ? { since: `${seen.epoch}:${seen.offset}` } : { last: this.#options.last || undefined };
    this.send({ type: "join", group, ...start });
  }

  #place(group, id) {
    if (this.#groups.has(group)) this.#groups.set(group, id === undefined ? null : parse(id));
  }
}

function parse(id) {
  const colon = id.lastIndexOf(":");
  return { epoch: id.slice(0, colon), offset: Number(id.slice(colon + 1)) };
}

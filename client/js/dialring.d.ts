// Types of the dialring SDK. All times are milliseconds.

/** What a Client is doing. `moving`: connected, and dialing another node. */
export type State = "waiting" | "locating" | "dialing" | "connected" | "moving" | "stopped";

/** A push to this client's user. */
export interface Message {
  /** Unique; the same message never comes twice. */
  id: string;
  /** When the node took it, by the node's clock. */
  time: Date;
  /** The user who sent it, if a user did; a service otherwise. */
  from?: string;
  /** Counts the user's stored messages. Without it the message is ephemeral. */
  seq?: number;
  /** The place behind a stored message, for {@link ClientOptions.since}. */
  cursor?: string;
  /** The payload: the parsed value if `json`, else a Uint8Array. Numbers are those of JSON.parse. */
  data: any;
  json: boolean;
}

/** A change of state. */
export interface Event {
  state: State;
  /** The node that owns the user, once it is known. */
  node?: string;
  /** When connected or moving: the session. A move does not change it. */
  session?: string;
  /** When waiting: for how long at most. */
  wait?: number;
  /** When connected: so many stored messages are about to come. */
  pending?: number;
  /**
   * When connected: stored messages were lost to a limit of the cluster, or with its store.
   * What is kept comes; what the application shows may be old.
   */
  gap?: boolean;
  /** Why the client is not connected any more; a CloseError or APIError where a server said so. */
  error?: unknown;
}

interface CommonOptions {
  /** Base URLs of locators, such as https://push.example.com. One is chosen at random, the next when it does not answer. */
  locators: string | string[];
  /**
   * Names this device of the user: 1 to 64 of A-Z a-z 0-9 . _ -
   * A second connection with the same device replaces the first, so two tabs need two. Keep it
   * the same over reloads: a device goes on behind what it has acknowledged. Default: a random one.
   */
  device?: string;
  /**
   * The cursor of a message after which to go on when run() is first called; "0": from the oldest that is
   * kept. Default: after what this device has acknowledged, or, for a new device, from now.
   */
  since?: string;
  /**
   * Gets each message, one after the other: stored ones in the order of `seq`, each once, also
   * over reconnects and moves. A message is acknowledged when the promise fulfils. When it throws or
   * rejects, run() rejects with its error, and the message comes again at the next run().
   * The signal aborts when the run ends. Up to 1,000 messages wait; see the README for what is beyond.
   */
  onMessage: (message: Message, signal: AbortSignal) => unknown;
  /** Is told of each change of state. When it throws, run() rejects with its error. */
  onEvent?: (event: Event) => void;
}

/** Who connects: a user with a token. */
export interface TokenOptions extends CommonOptions {
  /**
   * Gives a user token (a JWT whose `sub` is the user id). It is called before each locate, so
   * it can refresh. The signal aborts when nobody waits for it any more. It is of one user: once a node has welcomed
   * one, answers for another one are failed attempts.
   */
  token: (signal: AbortSignal) => string | Promise<string>;
  user?: undefined;
  sendTo?: undefined;
}

/** Who connects, in development mode. */
export interface DevelopmentOptions extends CommonOptions {
  /** Connects without a token, which locators allow in development mode only. */
  user: string;
  /** To whom it may send, ids or prefixes with a * behind. A token says that itself, in its claim send_to. */
  sendTo?: string[];
  token?: undefined;
}

/** One of `token` and `user` is needed. */
export type ClientOptions = TokenOptions | DevelopmentOptions;

export interface RequestOptions {
  /** Give up after so many ms, with a DOMException "TimeoutError". The message may have been sent. */
  timeout?: number;
  /** Give up when this aborts, with its reason. The message may have been sent. */
  signal?: AbortSignal;
}

export interface SendOptions extends RequestOptions {
  /** Do not store it: it goes to the sessions of that user that are connected now, and is not repeated. */
  ephemeral?: boolean;
  /** Names a stored message over reloads: with the same key and data it is one message, within two minutes. At most 128 bytes. */
  idempotencyKey?: string;
}

/** How a message to a user was accepted. */
export interface Receipt {
  id: string;
  /** Of the stored message, in the receiver's log. */
  seq?: number;
  stored: boolean;
  /** It had been sent before. */
  duplicate: boolean;
  /** To so many sessions it was written. */
  delivered: number;
}

/** Receives the messages of one user's device, and sends. The constructor does no I/O, and throws a TypeError for options that cannot work. */
export class Client {
  constructor(options: ClientOptions);
  /** What it is doing now; "stopped" before the first run(). */
  readonly state: State;
  readonly device: string;
  /**
   * Connects, receives, and reconnects until stop() is called or the signal aborts; then it resolves.
   * It rejects with a StoppedError if the server says not to come back, and with the error of
   * onMessage or onEvent. One run at a time; another may follow, and goes on behind what was handled.
   * When it has ended, what was received has been handled, but for stored messages after a stop, which come again.
   */
  run(options?: { signal?: AbortSignal }): Promise<void>;
  /** Ends the run, if there is one; run() resolves when that is done. */
  stop(): void;
  /**
   * Sends `data`, as JSON, to another user, if this user's token allows that. It may be called before run(), and waits
   * for a connection. A stored message is sent again over the next connection when one breaks, and is one message
   * in the end: the cluster knows its key for two minutes (DIALRING_IDEMPOTENCY_WINDOW of the nodes), so one that was
   * first sent 100 s ago is not repeated, and rejects with connection_lost. Rejects with a SendError if it is refused, and with that of run() when the run ends.
   */
  send(to: string, data: unknown, options?: SendOptions): Promise<Receipt>;
  /**
   * Sends `data`, as JSON, to the application behind the cluster; resolves with its answer. It is asked again
   * over the next connection when one breaks: the application can tell by the message's id.
   */
  request(data: unknown, options?: RequestOptions): Promise<any>;
}

/** How a node closed a connection. */
export class CloseError extends Error {
  private constructor();
  /** Of the close frame; 1005: it had none. */
  readonly code: number;
  readonly reason: string;
}

/** An answer of a locator that is not 200. */
export class APIError extends Error {
  private constructor();
  readonly status: number;
  /** Stable, such as rate_limited; empty if the answer was no problem document. */
  readonly code: string;
  readonly detail: string;
  /** How long to wait at least, in ms; 0 if it does not say. */
  readonly retryAfter: number;
}

/** Why a message of this client was not accepted. */
export class SendError extends Error {
  private constructor();
  /**
   * Stable: one of the cluster's, such as forbidden, too_large, no_application; or connection_lost (the connection
   * broke before the answer to a message that is not sent again, ephemeral or too old: it may have been delivered), not_running (the client has stopped).
   */
  readonly code: string;
  readonly detail: string;
}

/** The server does not want this client back. `cause` is the CloseError or APIError. */
export class StoppedError extends Error {
  private constructor();
  /** The close code, 4000 to 4099, or 0: 4001 unauthorized, 4002 kicked, 4003 replaced by the same device, 4004 too many sessions. */
  readonly code: number;
  /** The locator's HTTP status, or 0. */
  readonly status: number;
  readonly reason: string;
}

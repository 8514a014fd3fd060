package client

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// Config says how a Client connects. Locators and OnMessage are required, and
// one of Token and User.
type Config struct {
	// Locators are base URLs of locators, such as https://push.example.com. One
	// is chosen at random; when it does not answer, the next one is asked.
	Locators []string
	// Token returns a user token (a JWT whose sub is the user id). It is called
	// before each locate, so it can refresh. StaticToken makes one that does not. It is of one user:
	// once a node has welcomed one, answers for another one are failed attempts.
	Token func(ctx context.Context) (string, error)
	// User connects without a token, which locators allow in development mode only.
	User string
	// SendTo is, with User, to whom it may send: ids, or prefixes with a * behind. (A
	// token says that itself, in its claim send_to.)
	SendTo []string
	// Device names this device of the user: 1 to 64 of A-Z a-z 0-9 . _ -
	// A user's second connection with the same device replaces the first. Keep it
	// the same over restarts of the app; empty: a random one for this Client.
	Device string

	// Since is the cursor of a message (Message.Cursor) after which to go on when
	// Run starts; "0": from the oldest that is kept. Empty: after what this device
	// has acknowledged, or, for a device that never did, from now.
	Since string

	// OnMessage gets each message, one after the other: stored ones in the order of
	// Seq, each once, also over reconnects and moves. When it returns the message
	// is acknowledged; a process that ends before gets it again when it comes back,
	// and may get again what it handled in its last second. It may end the Run that it
	// belongs to: the message is acknowledged, those behind it are not. It may block: messages then wait, up to QueueSize,
	// after that the connection is not read, and the node closes it in the end
	// as too slow. ctx ends with the Run that it belongs to.
	OnMessage func(ctx context.Context, m Message)
	// OnEvent, if set, is told of each change of state. It must not block.
	OnEvent func(Event)
	// QueueSize is how many messages may wait for OnMessage; default 256.
	QueueSize int

	// HTTP is used for locating; default a client with a timeout of 10 s.
	HTTP *http.Client
	// TLS is used for wss nodes; it is cloned for each connection.
	TLS *tls.Config
}

// Message is a push to this client's user.
type Message struct {
	ID   string    // unique; the same message never comes twice
	Time time.Time // when the node took it, by the node's clock
	From string    // the user who sent it, if a user did
	Seq  uint64    // counts the user's stored messages; 0: this one is not stored
	// Cursor names the place behind a stored message, for Config.Since.
	Cursor string
	// Data is the payload as it was pushed, byte for byte: JSON if JSON is set.
	Data []byte
	JSON bool
}

// Unmarshal decodes a JSON payload into v.
func (m Message) Unmarshal(v any) error {
	if !m.JSON {
		return errors.New("dialring: the message is not JSON")
	}
	return json.Unmarshal(m.Data, v)
}

// State is what a Client is doing.
type State int

// A Client's states.
//
//	Waiting -> Locating -> Dialing -> Connected --+
//	   ^          |           |           |   ^   | Moving, then Connected again,
//	   |          |           |           |   +---+ with another Node
//	   +----------+-----------+-----------+   when it fails or ends
//	                                          (or Stopped, for good)
const (
	Waiting State = iota // for its back-off, or until the locator lets it dial
	Locating
	Dialing
	Connected
	Moving // connected, and dialing another node, or the same one anew
	Stopped
)

func (s State) String() string {
	if names := [...]string{"waiting", "locating", "dialing", "connected", "moving", "stopped"}; s >= 0 && int(s) < len(names) {
		return names[s]
	}
	return "unknown"
}

// Event is a change of state.
type Event struct {
	State   State
	Node    string        // that owns the user, once it is known
	Session string        // when Connected
	Wait    time.Duration // when Waiting: for how long
	// Pending is, when Connected, how many stored messages are about to come.
	Pending uint64
	// Gap, when Connected: stored messages were lost to a limit of the cluster, or
	// with its store. What is kept comes; what the application shows may be old.
	Gap bool
	// Err is why the Client is not connected any more; nil at first. It may wrap
	// a *CloseError or an *APIError.
	Err error
}

// Client receives the messages of one user's device. Make it with New; Run runs
// it. All methods may be called concurrently.
type Client struct {
	cfg     Config
	recheck time.Duration // the shortest time after which it locates again unasked

	mu       sync.Mutex
	last     Event
	running  bool
	failed   map[string]time.Time // nodes that could not be reached, and when
	refusals int                  // of the token, in a row
	user     string               // of Config.User, or whom the first welcome named

	place inboxPlace
	acks  acker
	sends sender
	busy  chan struct{} // holds one while the handler is at work

	// Run's own.
	seen    seen
	dropped []string // ids of stored messages that were received and not handled
	attempt int
	retry   wire.Retry
	moves   pace
}

// New checks the settings. It does no I/O.
func New(cfg Config) (*Client, error) {
	var err error
	if cfg.Locators, err = checkLocators(cfg.Locators); err != nil {
		return nil, err
	}
	switch {
	case cfg.OnMessage == nil:
		return nil, errors.New("dialring: Config.OnMessage is required")
	case (cfg.Token == nil) == (cfg.User == ""):
		return nil, errors.New("dialring: Config needs one of Token and User (User is for development mode)")
	}
	if cfg.SendTo != nil {
		if cfg.User == "" {
			return nil, errors.New("dialring: Config.SendTo goes with User; a token says itself whom its user may send to")
		}
		if err := wire.CheckSendTo(cfg.SendTo); err != nil {
			return nil, fmt.Errorf("dialring: Config.SendTo: %w", err)
		}
	}
	if cfg.User != "" {
		if err := wire.CheckUser(cfg.User); err != nil {
			return nil, fmt.Errorf("dialring: Config.User: %w", err)
		}
	}
	if cfg.Device == "" {
		cfg.Device = "go-" + wire.RandomID(10)
	}
	if err := wire.CheckDevice(cfg.Device); err != nil {
		return nil, fmt.Errorf("dialring: Config.Device: %w", err)
	}
	if cfg.Since != "" {
		if err := wire.CheckCursor(cfg.Since); err != nil {
			return nil, fmt.Errorf("dialring: Config.Since: %w", err)
		}
	}
	if cfg.QueueSize <= 0 {
		cfg.QueueSize = 256
	}
	if cfg.HTTP == nil {
		cfg.HTTP = &http.Client{Timeout: 10 * time.Second, CheckRedirect: noRedirect}
	}
	c := &Client{cfg: cfg, recheck: recheckAfter, user: cfg.User, failed: map[string]time.Time{}, retry: wire.DefaultRetry, busy: make(chan struct{}, 1)}
	c.place.since, c.acks.base = cfg.Since, cfg.Since
	c.sends = sender{prefix: wire.RandomID(5) + "-", repeat: repeatFor, calls: map[string]*call{}}
	return c, nil
}

// StaticToken is a Config.Token that always returns the same token.
func StaticToken(token string) func(context.Context) (string, error) {
	return func(context.Context) (string, error) { return token, nil }
}

func checkLocators(list []string) ([]string, error) {
	if len(list) == 0 {
		return nil, errors.New("dialring: at least one locator's URL is required, such as https://push.example.com")
	}
	out := make([]string, len(list))
	for i, l := range list {
		u, err := url.Parse(l)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
			_, shown, ok := strings.Cut(l, "@") // before that may be a password
			if !ok {
				shown = l
			}
			return nil, fmt.Errorf("dialring: %q is no locator's URL; it must be like https://push.example.com", shown)
		}
		out[i] = strings.TrimSuffix(l, "/")
	}
	return out, nil
}

// State returns the last event: what the client is doing now.
func (c *Client) State() Event {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

// Device returns the device id that the client uses.
func (c *Client) Device() string { return c.cfg.Device }

func (c *Client) tell(e Event) {
	c.mu.Lock()
	c.last = e
	c.mu.Unlock()
	if c.cfg.OnEvent != nil {
		c.cfg.OnEvent(e)
	}
}

// Run connects, receives, and reconnects until ctx ends; then it closes the
// connection and returns nil. It returns a *StoppedError if the server says not
// to come back: the token is refused, the session was kicked or replaced.
// Ephemeral messages that were received are handled before it returns; stored ones
// that were not come again. No goroutine is left.
func (c *Client) Run(ctx context.Context) error {
	c.mu.Lock()
	if c.running {
		c.mu.Unlock()
		return errors.New("dialring: Run is running already")
	}
	c.running = true
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.running = false
		c.mu.Unlock()
	}()

	queue := make(chan queued, c.cfg.QueueSize)
	handled := make(chan struct{})
	go func() {
		defer close(handled)
		for m := range queue {
			c.busy <- struct{}{}
			c.handle(ctx, m, queue)
			<-c.busy
		}
	}()
	c.resumeHandled()
	c.sends.begin()
	err := c.loop(ctx, queue)
	c.sends.end(err)
	close(queue)
	<-handled
	c.tell(Event{State: Stopped, Err: err})
	return err
}

// handle has a message handled, and acknowledges it: in the end, when the others are left
// for the next Run, at once.
func (c *Client) handle(ctx context.Context, m queued, queue <-chan queued) {
	switch {
	case m.Seq > 0 && ctx.Err() != nil: // it comes again
		if !m.seen {
			c.dropped = append(c.dropped, m.ID)
		}
		return
	case !m.seen:
		c.cfg.OnMessage(ctx, m.Message)
	}
	c.acks.handled(m.log, m.Cursor, len(queue) > 0 && ctx.Err() == nil)
}

// awaitHandler waits, before the client leaves, for the message that is being handled, so
// that it can be acknowledged: a handler may end its Run with the message that it got.
func (c *Client) awaitHandler() {
	select {
	case c.busy <- struct{}{}:
		<-c.busy
	case <-time.After(closeTimeout):
	}
}

// resumeHandled sets a Run that follows another back to what was handled: what
// was received beyond that and not handled is to come again.
func (c *Client) resumeHandled() {
	for _, id := range c.dropped {
		c.seen.remove(id)
	}
	c.dropped = nil
	if base := c.acks.last(); base != "" {
		c.place.reset(base)
	}
}

// queued is a message on its way to the handler. One that was seen is only
// acknowledged, in its turn.
type queued struct {
	Message
	log  int
	seen bool
}

// StoppedError says that the server does not want this client back.
type StoppedError struct {
	// Code is the WebSocket close code, 4000 to 4099, or 0.
	Code int
	// Status is the locator's HTTP status, or 0.
	Status int
	Reason string
}

func (e *StoppedError) Error() string {
	if e.Code != 0 {
		return strings.TrimSpace(fmt.Sprintf("dialring: the server ended the session for good: %d %s", e.Code, e.Reason))
	}
	return fmt.Sprintf("dialring: the locator refuses this client: %d %s", e.Status, e.Reason)
}

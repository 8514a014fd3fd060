package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/dialring/dialring/client"
	"github.com/dialring/dialring/internal/wire"
)

type listenFlags struct {
	user, token, tokenFile string
	device, since, sendTo  string
	count                  int
}

func (a *app) listenCommand() *cobra.Command {
	var f listenFlags
	c := &cobra.Command{
		Use:   "listen [--user USER | --token TOKEN | --token-file FILE]",
		Short: "Print a user's messages as they come",
		Long: `Connects as a user and prints each message as it comes: its time, who sent it
(- for a service), its number in the user's log (- if it is not stored) and the
payload; as JSON, one frame "message" of the WebSocket a line. A message is
acknowledged once it is printed. What happens to the connection is told on stderr.

Each call is a new device, which begins with what comes from now on; give
--device to go on where that device was, or --since 0 for everything that is
kept. A device connected twice replaces its first connection.

With --send-to each line of stdin is sent to that user: JSON as it is, anything
else as a string. The user's token must allow that (its claim send_to).

Reconnects by itself. Ends with 3 if no locator can be reached at first, with 1 if
the cluster ends the session for good, and with 0 after Ctrl-C or --count.`,
		Example: `  dialring listen --user alice
  dialring listen --token-file token.jwt --device kitchen --count 1 | jq .data`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("%s takes no argument, and there is %q: is that who listens? In development mode say --user %s", c.CommandPath(), args[0], args[0])
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error { return a.listen(c.Context(), &f) },
	}
	c.Flags().StringVar(&f.user, "user", "", "user `id`, in development mode")
	c.Flags().StringVar(&f.token, "token", "", "the user's `token` (ps shows it; default $DIALRING_CLI_TOKEN)")
	c.Flags().StringVar(&f.tokenFile, "token-file", "", "`file` with the user's token, read again before each locate")
	c.Flags().StringVar(&f.device, "device", "", "`name` of this device (default a new one)")
	c.Flags().StringVar(&f.since, "since", "", "go on behind this `cursor`; 0: everything that is kept")
	c.Flags().StringVar(&f.sendTo, "send-to", "", "send each line of stdin to this `user`")
	c.Flags().IntVar(&f.count, "count", 0, "end after so many messages")
	c.MarkFlagsMutuallyExclusive("user", "token", "token-file")
	return c
}

// identity puts into cfg who listens.
func (a *app) identity(f *listenFlags, cfg *client.Config) error {
	switch {
	case f.user != "":
		cfg.User = f.user
		if f.sendTo != "" {
			cfg.SendTo = []string{f.sendTo}
		}
	case f.tokenFile != "":
		if _, err := secretFile("--token-file", f.tokenFile); err != nil {
			return err
		}
		cfg.Token = func(context.Context) (string, error) { return secretFile("--token-file", f.tokenFile) }
	case f.token != "":
		cfg.Token = client.StaticToken(f.token)
	case a.env("DIALRING_CLI_TOKEN") != "":
		cfg.Token = client.StaticToken(a.env("DIALRING_CLI_TOKEN"))
	default:
		return usagef("who listens? Give --user (in development mode), --token-file or DIALRING_CLI_TOKEN")
	}
	return nil
}

func (a *app) listen(whole context.Context, f *listenFlags) error {
	if f.count < 0 {
		return usagef("--count is %d", f.count)
	}
	if f.sendTo != "" {
		if err := wire.CheckUser(f.sendTo); err != nil {
			return usagef("--send-to: %w", err)
		}
	}
	ctx, end := context.WithCancel(whole)
	defer end()
	locators, err := a.locatorList()
	if err != nil {
		return err
	}
	told := &teller{app: a, end: end}
	unprinted := make(chan error, 1)
	printed := 0
	cfg := client.Config{Locators: locators, Device: f.device, Since: f.since, HTTP: a.locating(), OnEvent: told.event}
	cfg.OnMessage = func(_ context.Context, m client.Message) {
		if f.count > 0 && printed == f.count {
			return // an ephemeral one behind the last
		}
		if err := a.printMessage(m); err != nil {
			unprinted <- err
			select {} // to return would acknowledge it; the process ends
		}
		if printed++; printed == f.count {
			end()
		}
	}
	if err := a.identity(f, &cfg); err != nil {
		return err
	}
	c, err := client.New(cfg)
	if err != nil {
		return usageError{err}
	}
	if f.sendTo != "" {
		go a.sendLines(ctx, c, f.sendTo) // a read of a terminal ends with the process only
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	select {
	case err = <-ended:
	case err := <-unprinted:
		return fmt.Errorf("a message could not be printed, and was not acknowledged: %w", err)
	}
	if told.fatal != nil {
		return told.fatal
	}
	return err
}

func (a *app) printMessage(m client.Message) error {
	if !a.asJSON() {
		return a.print(messageLine(m))
	}
	frame := wire.Message{Type: wire.TypeMessage, ID: m.ID, Time: m.Time, From: m.From, Seq: m.Seq, Cursor: m.Cursor}
	if m.JSON {
		frame.Data = m.Data
	} else {
		frame.DataB64 = m.Data
	}
	return a.printJSON(frame)
}

// messageLine is a message for people.
func messageLine(m client.Message) string {
	from, seq, data := "-", "-", string(m.Data)
	if m.From != "" {
		from = m.From
	}
	if m.Seq > 0 {
		seq = fmt.Sprintf("#%d", m.Seq)
	}
	if !m.JSON && !utf8.Valid(m.Data) {
		data = "base64:" + base64.StdEncoding.EncodeToString(m.Data)
	}
	return fmt.Sprintf("%s  %s  %s  %s\n", m.Time.Local().Format("15:04:05.000"), clean(from), seq, clean(data))
}

// teller tells what happens to a connection. All of it is the Client's one goroutine, until
// Run has returned.
type teller struct {
	app   *app
	end   context.CancelFunc
	last  client.Event
	node  string // connected to at last; "": never
	fatal error  // why the command gives up
}

func (t *teller) event(e client.Event) {
	last := t.last
	t.last = e
	switch e.State {
	case client.Connected:
		t.connected(e, last)
	case client.Moving:
		t.say("moving to %s", e.Node)
	case client.Waiting:
		var api *client.APIError
		switch {
		case e.Err == nil:
			t.say("the locator asks to wait for %s", short(e.Wait))
		case t.node == "" && last.State == client.Locating && !errors.As(e.Err, &api):
			t.fatal = e.Err // a wrong address rather than a bad moment
			t.end()
		default:
			t.say("not connected: %s; again in %s", strings.ReplaceAll(e.Err.Error(), "dialring: ", ""), short(e.Wait))
		}
	}
}

func (t *teller) connected(e, last client.Event) {
	switch {
	case e.Gap:
		t.say("some stored messages will not come: they were lost to a limit of the cluster, or with its store")
	case last.State == client.Moving && last.Session == e.Session && t.node == e.Node:
		t.say("still connected to %s", e.Node)
		return
	}
	if last.State == client.Connected { // only the gap is new
		return
	}
	verb := "connected"
	if last.State == client.Moving {
		verb = "moved"
	}
	waiting := ""
	if e.Pending > 0 {
		waiting = ", " + plural(int(e.Pending), "stored message") + " to come" // #nosec G115 -- the inbox keeps a million messages of a user at most
	}
	t.say("%s to %s (session %s%s)", verb, e.Node, e.Session, waiting)
	t.node = e.Node
}

func (t *teller) say(format string, args ...any) {
	t.app.say("%s %s", time.Now().Format("15:04:05"), fmt.Sprintf(format, args...))
}

func short(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

// sendLines sends each line of stdin to a user.
func (a *app) sendLines(ctx context.Context, c *client.Client, to string) {
	in := bufio.NewReader(a.stdin)
	for ctx.Err() == nil {
		line, err := in.ReadString('\n')
		if line = strings.TrimRight(line, "\r\n"); line != "" {
			a.sendLine(ctx, c, to, line)
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				a.say("stdin: %v", err)
			}
			return
		}
	}
}

func (a *app) sendLine(ctx context.Context, c *client.Client, to, line string) {
	data, _, err := form{}.payload([]byte(line))
	if err != nil {
		a.say("not sent: %v", err)
		return
	}
	switch r, err := c.Send(ctx, to, data); {
	case ctx.Err() != nil || errors.Is(err, client.ErrNotRunning):
	case err != nil:
		a.say("not sent: %v", err)
	default:
		a.say("sent to %s: %s", to, deliveredText(r))
	}
}

// deliveredText is what became of a stored message.
func deliveredText(r client.Receipt) string {
	return fmt.Sprintf("stored as #%d, written to %s", r.Seq, plural(r.Delivered, "session"))
}

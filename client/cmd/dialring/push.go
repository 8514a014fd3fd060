package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/dialring/dialring/client"
	"github.com/dialring/dialring/internal/wire"
)

type pushFlags struct {
	data      string
	usersFile string
	group     string
	device    string
	key       string
	ttl, wait time.Duration
	ephemeral bool
	form      form
}

func (a *app) pushCommand() *cobra.Command {
	var f pushFlags
	c := &cobra.Command{
		Use: `push USER [DATA]
  dialring push USER... --data DATA
  dialring push --users FILE [DATA]
  dialring push --group GROUP [DATA]`,
		Short: "Push a message to users",
		Long: `Pushes a message: to one user, to several, to those in a file (an id a line), or to
the members of a group. It is stored, and reaches every device of the user, unless
--ephemeral or --device say otherwise.

With --data every argument is a user. Without it the data is the argument behind
the user, or, if there is none or it is -, all of stdin (--data - does the same
for several users). So "push alice bob" pushes the text bob to alice.

Data that is JSON is pushed as the JSON that it is: 12, true, "hi", {"a":1}.
Other text is pushed as a JSON string, without the end of its last line if it comes
from stdin: push alice hello pushes "hello". --json refuses what is not JSON,
--text makes a string also of what is, --raw pushes bytes as they are (they arrive
as data_b64; to one user or a group).

Waits until the push is accepted, and repeats it where that is safe. If it fails
with 3 or 4, the message tells the key with which it may be repeated: pushed again
with that --key within two minutes it is one message in the end.

Ends with 1 if one of several users was refused, and with --wait-ack if no session
acknowledged the message in time (it is stored all the same).`,
		Example: `  dialring push alice '{"hello":"alice"}'
  dialring push alice bob --data 'maintenance at ten' --ttl 1h
  date | dialring push --group on-call
  dialring push alice hi --wait-ack 5s`,
		Args:                  cobra.ArbitraryArgs,
		DisableFlagsInUseLine: true,
		RunE: func(c *cobra.Command, args []string) error {
			return a.push(c.Context(), &f, args, c.Flags().Changed("data"))
		},
	}
	c.Flags().StringVarP(&f.data, "data", "d", "", "the `data`; every argument is a user then; -: stdin")
	c.Flags().StringVar(&f.usersFile, "users", "", "push to the users in this `file`, one a line; -: stdin")
	c.Flags().StringVar(&f.group, "group", "", "push to each member of this `group`")
	c.Flags().StringVar(&f.device, "device", "", "to this `device` of the user only, if it is connected now")
	c.Flags().StringVar(&f.key, "key", "", "idempotency `key`: pushed again with it, it is one message (default a random one)")
	c.Flags().DurationVar(&f.ttl, "ttl", 0, "do not deliver it any more after this `time`, such as 90s")
	c.Flags().DurationVar(&f.wait, "wait-ack", 0, "wait until a session has acknowledged it, for this `time` at most, such as 5s")
	c.Flags().BoolVar(&f.ephemeral, "ephemeral", false, "to the sessions that are connected now; store nothing")
	c.Flags().BoolVar(&f.form.json, "json", false, "the data must be JSON")
	c.Flags().BoolVar(&f.form.text, "text", false, "the data is text, even if it looks like JSON")
	c.Flags().BoolVar(&f.form.raw, "raw", false, "the data is bytes")
	c.MarkFlagsMutuallyExclusive("json", "text", "raw")
	c.MarkFlagsMutuallyExclusive("users", "group")
	return c
}

func (a *app) push(ctx context.Context, f *pushFlags, args []string, dataGiven bool) error {
	t, err := a.target(f, args, dataGiven)
	if err != nil {
		return err
	}
	opts, err := f.options(t)
	if err != nil {
		return err
	}
	p, err := a.pusher()
	if err != nil {
		return err
	}
	switch {
	case f.group != "":
		err = a.pushGroup(ctx, p, f, t, opts)
	case len(t.users) == 1 && f.usersFile == "":
		err = a.pushOne(ctx, p, f, t, opts)
	default:
		err = a.pushMany(ctx, p, f, t, opts)
	}
	if t.doubt != "" && err == nil {
		a.say("%s", t.doubt)
	}
	return err
}

// options are those of the SDK; what does not go together is wrong usage.
func (f *pushFlags) options(t *target) ([]client.PushOption, error) {
	var opts []client.PushOption
	ephemeral := f.ephemeral || f.device != ""
	_, raw := t.data.([]byte)
	switch {
	case ephemeral && (f.key != "" || f.wait != 0 || f.ttl != 0):
		return nil, usagef("--key, --ttl and --wait-ack are of stored messages; --ephemeral and --device store none")
	case f.ttl < 0 || f.ttl > 0 && f.ttl < time.Millisecond || f.wait < 0 || f.wait > 0 && f.wait < time.Millisecond || f.wait > time.Minute:
		return nil, usagef("--ttl is a millisecond at least, --wait-ack a millisecond to a minute")
	case f.group != "" && (f.device != "" || f.wait != 0):
		return nil, usagef("--device and --wait-ack do not go with --group")
	case raw && f.group == "" && (len(t.users) != 1 || f.usersFile != ""):
		return nil, usagef("--raw goes to one user, or to a group")
	case len(f.key) > wire.MaxIdempotencyKey:
		return nil, usagef("--key has %d bytes; at most %d", len(f.key), wire.MaxIdempotencyKey)
	}
	if f.device != "" {
		if err := wire.CheckDevice(f.device); err != nil {
			return nil, usagef("--device: %w", err)
		}
		opts = append(opts, client.ToDevice(f.device))
	}
	if f.ephemeral {
		opts = append(opts, client.Ephemeral())
	}
	if !ephemeral && f.key == "" {
		f.key = rand.Text() // so that an error can tell it
	}
	if f.ttl > 0 {
		opts = append(opts, client.TTL(f.ttl))
	}
	if f.wait > 0 {
		opts = append(opts, client.WaitAck(f.wait))
	}
	return opts, nil
}

// repeatable adds to an error how to push again.
func (f *pushFlags) repeatable(ctx context.Context, err error) error {
	code := codeOf(ctx, err)
	if err == nil || f.key == "" || code != exitUnreachable && code != exitAgain {
		return err
	}
	return keyError{err, f.key}
}

// keyError is of a push that may be repeated.
type keyError struct {
	error
	key string
}

func (e keyError) Unwrap() error { return e.error }

func (a *app) pushOne(ctx context.Context, p *client.Pusher, f *pushFlags, t *target, opts []client.PushOption) error {
	if f.key != "" {
		opts = append(opts, client.IdempotencyKey(f.key))
	}
	user := t.users[0]
	r, err := within(ctx, a, f.wait, func(ctx context.Context) (client.Receipt, error) { return p.Push(ctx, user, t.data, opts...) })
	if err != nil {
		return f.repeatable(ctx, err)
	}
	if a.asJSON() {
		err = a.printJSON(pushResult("", r))
	} else {
		err = a.print(receiptLine(user, r, f.wait > 0))
	}
	if err == nil && f.wait > 0 && r.Acked == 0 {
		err = fmt.Errorf("no session acknowledged the message within %s; it is stored", f.wait)
	}
	return err
}

func pushResult(user string, r client.Receipt) wire.PushResult {
	return wire.PushResult{User: user, ID: r.ID, Seq: r.Seq, Stored: r.Stored, Duplicate: r.Duplicate, Delivered: r.Delivered, Acked: r.Acked, Node: r.Node, Epoch: r.Epoch}
}

func receiptLine(user string, r client.Receipt, waited bool) string {
	acked := ""
	if waited {
		acked = fmt.Sprintf(", acknowledged by %d", r.Acked)
	}
	where := fmt.Sprintf("of %s at %s", clean(user), r.Node)
	switch {
	case r.Duplicate:
		return fmt.Sprintf("pushed before, as #%d %s: nothing was sent%s\n", r.Seq, where, acked)
	case r.Stored:
		return fmt.Sprintf("%s %s%s\n", deliveredText(r), where, acked)
	}
	return fmt.Sprintf("written to %s %s, not stored\n", plural(r.Delivered, "session"), where)
}

func (a *app) pushMany(ctx context.Context, p *client.Pusher, f *pushFlags, t *target, opts []client.PushOption) error {
	var results []client.Result
	var whole error // of a call as such
	data, _ := t.data.(json.RawMessage)
	// As many users as the SDK puts into one call: --timeout is for each.
	each := len(data) + len(f.key) + 2*wire.MaxUserID + 64
	for users := range slices.Chunk(t.users, min(wire.MaxUsersPerCall, max(1, wire.MaxCallBytes/2/each))) {
		var part []client.Result
		part, whole = within(ctx, a, f.wait, func(ctx context.Context) ([]client.Result, error) {
			if f.key == "" {
				return p.PushUsers(ctx, users, t.data, opts...)
			}
			items := make([]client.Item, len(users))
			for i, u := range users {
				items[i] = client.Item{User: u, Data: t.data, Key: f.key}
			}
			return p.PushMany(ctx, items, opts...)
		})
		if results = append(results, part...); whole != nil {
			break
		}
	}
	if err := a.printResults(results); err != nil {
		return err
	}
	if whole != nil {
		return f.repeatable(ctx, whole)
	}
	return f.repeatable(ctx, failures(results, f.wait))
}

func (a *app) printResults(results []client.Result) error {
	if a.asJSON() {
		lines := make([]any, len(results))
		for i, r := range results {
			if e := pushError(r.Err); e != nil {
				lines[i] = wire.GroupFailed{User: r.User, Error: *e}
				continue
			}
			lines[i] = pushResult(r.User, r.Receipt)
		}
		return a.printJSON(map[string]any{"results": lines})
	}
	rows := [][]cell{plain("USER", "SEQ", "WRITTEN TO", "NODE", "")}
	for _, r := range results {
		seq, note := "-", ""
		if r.Seq > 0 {
			seq = fmt.Sprintf("#%d", r.Seq)
		}
		if r.Duplicate {
			note = "pushed before"
		}
		row := plain(r.User, seq, plural(r.Delivered, "session"), r.Node, note)
		if r.Err != nil {
			row = append(plain(r.User, "-", "-", "-"), cell{strings.TrimPrefix(r.Err.Error(), "dialring: "), red})
		}
		rows = append(rows, row)
	}
	return a.print(table(rows, a.colours()))
}

func pushError(err error) *wire.PushError {
	var api *client.APIError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &api):
		return &wire.PushError{Code: wire.Code(api.Code), Detail: api.Detail}
	}
	return &wire.PushError{Code: wire.CodeInternal, Detail: err.Error()}
}

// failures is an error if some of several pushes failed: one that will not do later either
// counts more.
func failures(results []client.Result, waited time.Duration) error {
	n, silent, code := 0, 0, exitAgain
	for _, r := range results {
		if r.Err == nil {
			if waited > 0 && r.Acked == 0 {
				silent++
			}
			continue
		}
		n++
		var api *client.APIError
		if !errors.As(r.Err, &api) || !again(api) {
			code = exitFailed
		}
	}
	switch {
	case n > 0:
		return exitError{code, fmt.Errorf("the push failed for %d of %s", n, plural(len(results), "user"))}
	case silent > 0:
		return fmt.Errorf("no session of %s acknowledged the message within %s; it is stored", plural(silent, "user"), waited)
	}
	return nil
}

func (a *app) pushGroup(ctx context.Context, p *client.Pusher, f *pushFlags, t *target, opts []client.PushOption) error {
	if f.key != "" {
		opts = append(opts, client.IdempotencyKey(f.key))
	}
	r, err := within(ctx, a, wire.MaxGroupPush, func(ctx context.Context) (client.GroupReceipt, error) {
		return p.PushGroup(ctx, f.group, t.data, opts...)
	})
	if err != nil {
		return f.repeatable(ctx, err)
	}
	if a.asJSON() {
		out := wire.GroupPushResult{Group: f.group, Members: r.Members, Stored: r.Stored, Delivered: r.Delivered, FailedCount: r.Failed, Failed: []wire.GroupFailed{}}
		for _, x := range r.Failures {
			out.Failed = append(out.Failed, wire.GroupFailed{User: x.User, Error: *pushError(x.Err)})
		}
		err = a.printJSON(out)
	} else {
		err = a.print(fmt.Sprintf("to %s of %s: stored for %d, written to %s, failed for %d\n",
			plural(r.Members, "member"), clean(f.group), r.Stored, plural(r.Delivered, "session"), r.Failed))
		for _, x := range r.Failures {
			a.say("%s: %v", x.User, strings.TrimPrefix(x.Err.Error(), "dialring: "))
		}
	}
	if err != nil || r.Failed == 0 {
		return err
	}
	return f.repeatable(ctx, failuresOfGroup(r))
}

func failuresOfGroup(r client.GroupReceipt) error {
	err := failures(r.Failures, 0)
	var e exitError
	if !errors.As(err, &e) {
		return err
	}
	return exitError{e.code, fmt.Errorf("the push failed for %d of %s", r.Failed, plural(r.Members, "member"))}
}

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/dialring/dialring/client"
	"github.com/dialring/dialring/internal/wire"
)

func (a *app) whereCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "where USER",
		Short: "Show which node owns a user, and the user's sessions",
		Long: `Shows which node owns a user, and each of the user's sessions, from the connections
themselves: the newest stored message that it acknowledged, and the bytes that wait
to be written to it. A user without a session is no failure.`,
		Args: just("user", "alice"),
		RunE: func(c *cobra.Command, args []string) error { return a.where(c.Context(), args[0]) },
	}
}

func (a *app) where(ctx context.Context, user string) error {
	if err := wire.CheckUser(user); err != nil {
		return usagef("%q: %w", user, err)
	}
	p, err := a.pusher()
	if err != nil {
		return err
	}
	u, err := within(ctx, a, 0, func(ctx context.Context) (client.User, error) { return p.User(ctx, user) })
	if err != nil {
		return err
	}
	if a.asJSON() {
		out := wire.UserResponse{User: user, Node: u.Node, Epoch: u.Epoch, Online: u.Online, Sessions: []wire.Session{}, Head: u.Head, HeadUnknown: u.HeadUnknown}
		for _, s := range u.Sessions {
			out.Sessions = append(out.Sessions, wire.Session(s))
		}
		return a.printJSON(out)
	}
	return a.print(whereText(user, u, a.colours()))
}

func whereText(user string, u client.User, colours bool) string {
	newest := "no message is stored"
	switch {
	case u.HeadUnknown:
		newest = "what is stored is not known now: the store is away"
	case u.Head > 0:
		newest = fmt.Sprintf("the newest stored message is #%d", u.Head)
	}
	state := "offline"
	if u.Online {
		state = "online, " + plural(len(u.Sessions), "session")
	}
	text := fmt.Sprintf("%s is owned by %s (ring %d): %s; %s\n", clean(user), u.Node, u.Epoch, state, newest)
	if len(u.Sessions) == 0 {
		return text
	}
	rows := [][]cell{plain("SESSION", "DEVICE", "NODE", "CONNECTED", "ADDRESS", "ACKED", "QUEUED")}
	for _, s := range u.Sessions {
		rows = append(rows, plain(s.ID, s.Device, s.Node, s.ConnectedAt.Local().Format(time.DateTime), s.RemoteAddr,
			fmt.Sprintf("#%d", s.AckedSeq), fmt.Sprintf("%d B", s.QueuedBytes)))
	}
	return text + table(rows, colours)
}

func (a *app) kickCommand() *cobra.Command {
	var device, session string
	var revoke bool
	c := &cobra.Command{
		Use:   "kick USER",
		Short: "End sessions of a user",
		Long: `Ends a user's sessions: all of them, or one device's, or one. Their clients stop for
good; but a client that is started again connects again, unless --revoke has the
locators refuse the tokens that were issued before now.`,
		Args: just("user", "alice"),
		RunE: func(c *cobra.Command, args []string) error {
			var opts []client.KickOption
			if device != "" {
				opts = append(opts, client.KickDevice(device))
			}
			if session != "" {
				opts = append(opts, client.KickSession(session))
			}
			if revoke {
				opts = append(opts, client.RevokeTokens())
			}
			return a.kick(c.Context(), args[0], opts)
		},
	}
	c.Flags().StringVar(&device, "device", "", "only sessions of this `device`")
	c.Flags().StringVar(&session, "session", "", "only this `session`")
	c.Flags().BoolVar(&revoke, "revoke", false, "also refuse the user's tokens that were issued before now")
	c.MarkFlagsMutuallyExclusive("device", "revoke")
	c.MarkFlagsMutuallyExclusive("session", "revoke")
	return c
}

func (a *app) kick(ctx context.Context, user string, opts []client.KickOption) error {
	if err := wire.CheckUser(user); err != nil {
		return usagef("%q: %w", user, err)
	}
	p, err := a.pusher()
	if err != nil {
		return err
	}
	n, err := within(ctx, a, 0, func(ctx context.Context) (int, error) { return p.Kick(ctx, user, opts...) })
	if err != nil {
		return err
	}
	if a.asJSON() {
		return a.printJSON(map[string]int{"closed": n})
	}
	return a.print(fmt.Sprintf("%s of %s ended\n", plural(n, "session"), clean(user)))
}

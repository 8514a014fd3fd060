package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/dialring/dialring/client"
	"github.com/dialring/dialring/internal/wire"
)

// Exit codes. The help of the command tells them.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitUnreachable = 3
	exitAgain       = 4
	exitInterrupted = 130
)

// usageError is the caller's mistake: nothing was done.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func (e usageError) Unwrap() error { return e.error }

// exitError is one that says itself with what code the command ends.
type exitError struct {
	code int
	error
}

func (e exitError) Unwrap() error { return e.error }

// codeOf is the exit code for an error.
func codeOf(ctx context.Context, err error) int {
	var usage usageError
	var exit exitError
	var api *client.APIError
	switch {
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &exit):
		return exit.code
	case ctx.Err() != nil:
		return exitInterrupted
	case errors.As(err, &api):
		if again(api) {
			return exitAgain
		}
		return exitFailed
	case unreachable(err):
		return exitUnreachable
	}
	return exitFailed
}

// again tells whether the cluster may take the same later: then it did not take it now,
// or does not know.
func again(e *client.APIError) bool {
	switch e.Status {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	case 0: // of one message among several
		switch wire.Code(e.Code) {
		case wire.CodeRateLimited, wire.CodeNoNodes, wire.CodeOwnerUnreachable, wire.CodeStoreUnavailable, wire.CodeDraining, wire.CodeMisdirected:
			return true
		}
	}
	return false
}

// unreachable tells whether err is that nobody answered.
func unreachable(err error) bool {
	var u *url.Error
	var op *net.OpError
	return errors.As(err, &u) || errors.As(err, &op)
}

// elsewhere tells whether err is the answer of what is no locator: an admin port or a node
// knows no such path, and NATS greets before it is asked.
func elsewhere(err error) bool {
	var api *client.APIError
	var stopped *client.StoppedError
	status, detail := 0, err.Error()
	switch {
	case errors.As(err, &api):
		status, detail = api.Status, api.Detail
	case errors.As(err, &stopped):
		status, detail = stopped.Status, stopped.Reason
	default: // as the SDK says it, and net/http of an answer and of a greeting that is no HTTP
		return slices.ContainsFunc([]string{"does not answer like a locator", "malformed HTTP ", "readLoopPeekFailLocked: %!w(<nil>)"},
			func(s string) bool { return strings.Contains(detail, s) })
	}
	// A locator knows the methods that are used here. Without a problem document, which it
	// always sends, the detail is the status line.
	return status == http.StatusMethodNotAllowed || status == http.StatusNotFound &&
		(strings.HasPrefix(detail, "there is nothing at this path") || strings.HasPrefix(detail, strconv.Itoa(status)))
}

// explain is what the caller is told: what is wrong, and what to do.
func (a *app) explain(err error, code int) string {
	text := a.reason(err, code)
	var k keyError
	if errors.As(err, &k) {
		text += fmt.Sprintf("\nrepeat it with --key %s: it is one message then", k.key)
	}
	return text
}

func (a *app) reason(err error, code int) string {
	text := strings.ReplaceAll(err.Error(), "dialring: ", "")
	var api *client.APIError
	var stopped *client.StoppedError
	switch {
	case elsewhere(err):
		list, _ := a.locatorList()
		return fmt.Sprintf("no locator answers at %s, but something else does: --locator is the address of DIALRING_LISTEN (port 8080 by default), not an admin port, a node's, or that of NATS", strings.Join(list, ", "))
	case code == exitUnreachable:
		list, _ := a.locatorList()
		var op *net.OpError
		why := text
		if errors.As(err, &op) {
			why = op.Err.Error()
		}
		return fmt.Sprintf("no locator at %s answers (%s): is one running? Set DIALRING_CLI_LOCATOR or --locator", strings.Join(list, ", "), why)
	case errors.As(err, &stopped) && stopped.Status == http.StatusUnauthorized:
		return fmt.Sprintf("the locator refuses this user (%s): development mode takes --user, others a token", stopped.Reason)
	case errors.As(err, &stopped) && stopped.Code == wire.CloseReplaced:
		return text + ": another client of this user has the same device"
	case errors.As(err, &api) && api.Status == http.StatusUnauthorized:
		return text + ": set DIALRING_CLI_API_KEY or --api-key-file"
	case errors.As(err, &api) && api.Status == http.StatusForbidden:
		return text + ": the key is good, but its scopes or users in the locators' file do not allow it"
	}
	return text
}

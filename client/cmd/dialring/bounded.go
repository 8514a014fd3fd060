package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/dialring/dialring/client"
)

const (
	// usualTimeout is longer than the SDK waits for one locator, so that another is asked.
	usualTimeout = 20 * time.Second
	// sayAfter is how long a call may be silent.
	sayAfter = 3 * time.Second
)

// within does a call to the cluster, and says so on stderr when it takes long: also where
// that is no terminal, since who reads a log wants to know, too.
func within[T any](ctx context.Context, a *app, longer time.Duration, call func(context.Context) (T, error)) (T, error) {
	said := make(chan struct{})
	slow := time.AfterFunc(sayAfter, func() {
		defer close(said)
		list, _ := a.locatorList()
		a.say("still waiting for %s; gives up after %s (--timeout)", strings.Join(list, ", "), a.timeout+longer)
	})
	defer func() {
		if !slow.Stop() {
			<-said // not behind what the command ends with
		}
	}()
	return bounded(ctx, a, longer, call)
}

// bounded does a call that may take --timeout, its retries included, and longer where that
// was asked for.
func bounded[T any](whole context.Context, a *app, longer time.Duration, call func(context.Context) (T, error)) (T, error) {
	most := a.timeout + longer
	ctx, cancel := context.WithTimeout(whole, most)
	defer cancel()
	out, err := call(ctx)
	if whole.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
		return out, err
	}
	var api *client.APIError
	switch {
	case errors.As(err, &api):
		return out, fmt.Errorf("%w; trying again takes longer than %s (--timeout)", api, most)
	case ctx.Err() != nil:
		return out, exitError{exitUnreachable, fmt.Errorf("nothing came within %s, see --timeout", most)}
	}
	return out, err
}

// done is for a call that has no result.
func done(call func(context.Context) error) func(context.Context) (struct{}, error) {
	return func(ctx context.Context) (struct{}, error) { return struct{}{}, call(ctx) }
}

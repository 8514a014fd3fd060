package locator

import (
	"context"
	"log/slog"
	"net/http"
	"net/url"
	"slices"

	"github.com/labstack/echo/v4"

	"github.com/dialring/dialring/internal/httpd"
	"github.com/dialring/dialring/internal/wire"
)

// Acts of services that the log has a line of, as those of operators.
const (
	actKick   = "kick"
	actRevoke = "revoke"
	actGroup  = "group"
	actDrain  = "drain"
	actPush   = "push" // an operator's, from the dashboard

	actAPIKeys = "api_keys" // an operator's, by a file
)

const (
	nameOfAct = "dialring.act"
	noteOfAct = "dialring.note"
)

// called has the line about the act that c asks for call it by another name.
func called(c echo.Context, act string) { c.Set(nameOfAct, act) }

// note adds fields to the line about the act that c asks for.
func note(c echo.Context, fields ...any) { c.Set(noteOfAct, fields) }

// audited logs what a service asked for, also when it may not do that. It stands behind
// known: who has no key is no more than a stranger.
func (l *Locator) audited(act string, target func(c echo.Context) string) echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			return l.act(c, act, target(c), func() error { return next(c) })
		}
	}
}

// act does something that changes who is connected, who gets what, or the cluster, and logs
// it with who asked for it, and what became of it.
func (l *Locator) act(c echo.Context, act, target string, do func() error) error {
	err := do()
	if said, ok := c.Get(nameOfAct).(string); ok {
		act = said
	}
	who, result, level := "api_key:"+keyOf(c).name, resultOK, slog.LevelInfo
	if keyOf(c) == operator {
		who = httpd.AdminCallerOf(c.Request().Context()).Whole()
	}
	if err != nil {
		result, level = codeOf(err), slog.LevelWarn
	}
	fields, _ := c.Get(noteOfAct).([]any)
	log := l.log.With(fields...)
	log.Log(context.Background(), level, "an administrative act", "event", "audit", "act", act, "target", httpd.Cut(target), "who", who,
		"remote", c.Request().RemoteAddr, "result", result, "query", httpd.Cut(auditedQuery(c.Request().URL.Query())))
	return err
}

var auditedParams = []string{"device", "session", "revoke", "durable"}

// auditedQuery is what the line shows of a query: the parameters of acts. Others may be a
// key in the wrong place.
func auditedQuery(q url.Values) string {
	shown := url.Values{}
	for name, v := range q {
		if slices.Contains(auditedParams, name) {
			shown[name] = v
		}
	}
	return shown.Encode()
}

// operated is what known is on the admin listener, which has found out who asks.
func operated(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		c.Set(keyOfCaller, operator)
		return next(c)
	}
}

// kickTarget is whose sessions are to end.
func kickTarget(c echo.Context) string {
	user, err := wire.PathUser(c.Request().URL, "/v1/users/", "/sessions")
	if err != nil {
		return c.Request().URL.Path
	}
	return user
}

// groupTarget is the group whose members are to change.
func groupTarget(c echo.Context) string {
	ids, err := wire.PathIDs(c.Request().URL, "/v1/groups/")
	if err != nil || len(ids) == 0 {
		return c.Request().URL.Path
	}
	if len(ids) == 3 {
		if c.Request().Method == http.MethodPut {
			note(c, "add", httpd.Cut(ids[2]))
		} else {
			note(c, "remove", httpd.Cut(ids[2]))
		}
	}
	return ids[0]
}

func drainTarget(c echo.Context) string { return c.Param("node") }

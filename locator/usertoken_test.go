package locator

import (
	"errors"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// For whom a token must be and by whom it is, and that nothing in it is critical which nobody
// here understands. What a stranger is told is the same for all of it.
func TestUserTokenIssuer(t *testing.T) {
	const audience, issuer = "push.example.com", "https://login.example.com/"
	type claims = map[string]any
	for name, x := range map[string]struct {
		audience, issuer string
		header, claims   map[string]any
		reason           string // "": it is good
	}{
		"nothing is asked for":          {claims: claims{"aud": "x", "iss": "y"}},
		"its audience":                  {audience: audience, claims: claims{"aud": audience}},
		"one of its audiences":          {audience: audience, claims: claims{"aud": []string{"other", audience}}},
		"no audience":                   {audience: audience, reason: tokenAudience},
		"no audience in a list":         {audience: audience, claims: claims{"aud": []string{}}, reason: tokenAudience},
		"an empty audience":             {audience: audience, claims: claims{"aud": ""}, reason: tokenAudience},
		"another audience":              {audience: audience, claims: claims{"aud": "other"}, reason: tokenAudience},
		"the beginning of the audience": {audience: audience, claims: claims{"aud": "push"}, reason: tokenAudience},
		"more than the audience":        {audience: audience, claims: claims{"aud": audience + ".evil.example"}, reason: tokenAudience},
		"audiences in one text":         {audience: audience, claims: claims{"aud": "other " + audience}, reason: tokenAudience},
		"another case of the audience":  {audience: audience, claims: claims{"aud": "Push.example.com"}, reason: tokenAudience},
		"an audience of a number":       {audience: audience, claims: claims{"aud": 7}, reason: tokenMalformed},
		"the audience as its issuer":    {audience: audience, claims: claims{"iss": audience}, reason: tokenAudience},
		"its issuer":                    {issuer: issuer, claims: claims{"iss": issuer}},
		"no issuer":                     {issuer: issuer, reason: tokenIssuer},
		"another issuer":                {issuer: issuer, claims: claims{"iss": "https://login.example.org/"}, reason: tokenIssuer},
		"the issuer without its slash":  {issuer: issuer, claims: claims{"iss": "https://login.example.com"}, reason: tokenIssuer},
		"issuers in a list":             {issuer: issuer, claims: claims{"iss": []string{issuer}}, reason: tokenMalformed},
		"both":                          {audience: audience, issuer: issuer, claims: claims{"aud": audience, "iss": issuer}},
		"only the issuer of both":       {audience: audience, issuer: issuer, claims: claims{"iss": issuer}, reason: tokenAudience},
		"only the audience of both":     {audience: audience, issuer: issuer, claims: claims{"aud": audience}, reason: tokenIssuer},
		"expired, for another":          {audience: audience, claims: claims{"aud": "other", "exp": 1}, reason: tokenExpired},
		"a critical extension":          {header: claims{"crit": []string{"exp"}, "exp": 1}, reason: tokenCritical},
		"a critical extension, b64":     {header: claims{"crit": []string{"b64"}, "b64": true}, reason: tokenCritical},
		"an empty list of extensions":   {header: claims{"crit": []string{}}, reason: tokenCritical},
		"no list of extensions":         {header: claims{"crit": nil}, reason: tokenCritical},
		"an extension that is not":      {header: claims{"x": "y"}},
	} {
		u, err := newUserTokens(t.Context(), &Config{UserJWTSecret: testSecret, UserJWTAudience: x.audience, UserJWTIssuer: x.issuer})
		if err != nil {
			t.Fatal(err)
		}
		token := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"sub": "alice", "exp": time.Now().Add(time.Hour).Unix()})
		for k, v := range x.claims {
			token.Claims.(jwt.MapClaims)[k] = v
		}
		for k, v := range x.header {
			token.Header[k] = v
		}
		signed, err := token.SignedString([]byte(testSecret))
		if err != nil {
			t.Fatal(err)
		}
		who, err := u.caller(signed)
		if x.reason == "" {
			if err != nil || who.user != "alice" {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		var e *tokenError
		if !errors.As(err, &e) || e.reason != x.reason || x.reason != tokenExpired && e.detail != invalidToken {
			t.Errorf("%s: %+v, want the reason %s", name, e, x.reason)
			continue
		}
		if signed := x.reason != tokenCritical && x.reason != tokenMalformed; (e.user == "alice") != signed {
			t.Errorf("%s: the log has the user %q", name, e.user)
		}
	}
}

// Names of claims count as they are written.
func TestUserTokenClaimNames(t *testing.T) {
	u, err := newUserTokens(t.Context(), &Config{UserJWTSecret: testSecret, UserJWTIssuer: "us"})
	if err != nil {
		t.Fatal(err)
	}
	later := time.Now().Add(time.Hour).Unix()
	for reason, claims := range map[string]jwt.MapClaims{
		tokenNoExpiry: {"sub": "alice", "EXP": later, "iss": "us"},
		tokenUser:     {"Sub": "alice", "exp": later, "iss": "us"},
		tokenIssuer:   {"sub": "alice", "exp": later, "ISS": "us"},
		"":            {"sub": "alice", "exp": later, "iss": "us", "Send_To": []string{"bob"}, "NBF": later, "Iat": "never", "JTI": 7, "AUD": 7},
	} {
		signed, err := jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString([]byte(testSecret))
		if err != nil {
			t.Fatal(err)
		}
		who, err := u.caller(signed)
		var e *tokenError
		switch {
		case reason == "" && (err != nil || who.user != "alice" || len(who.sendTo) > 0 || !who.issued.IsZero()):
			t.Errorf("%v: %+v, %v", claims, who, err)
		case reason != "" && (!errors.As(err, &e) || e.reason != reason):
			t.Errorf("%v: %v, want the reason %s", claims, err, reason)
		}
	}
}

package ticket

import (
	"encoding/json"
	"errors"
	"math"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// Claims are the registered claims of a JWT (RFC 7519, 4.1) that dialring looks
// at, read strictly: golang-jwt's own take a time that is written as text.
type Claims struct {
	Subject   string           `json:"sub,omitempty"`
	Audience  jwt.ClaimStrings `json:"aud,omitempty"`
	Expires   *Time            `json:"exp,omitempty"`
	NotBefore *Time            `json:"nbf,omitempty"`
	IssuedAt  *Time            `json:"iat,omitempty"`
	Issuer    string           `json:"iss,omitempty"`
	ID        string           `json:"jti,omitempty"`
}

// Time is a NumericDate: seconds since 1970, as a JSON number.
type Time struct{ time.Time }

// UnmarshalJSON implements json.Unmarshaler.
func (t *Time) UnmarshalJSON(b []byte) error {
	var f float64
	if err := json.Unmarshal(b, &f); err != nil {
		return errors.New("a time in a token must be a number of seconds")
	}
	if math.Abs(f) > 1e15 { // beyond what time.Time counts
		return errors.New("a time in a token is out of range")
	}
	sec, frac := math.Modf(f)
	t.Time = time.Unix(int64(sec), int64(frac*1e9))
	return nil
}

func (t *Time) date() *jwt.NumericDate {
	if t == nil {
		return nil
	}
	return jwt.NewNumericDate(t.Time)
}

// GetExpirationTime and the others implement jwt.Claims.
func (c *Claims) GetExpirationTime() (*jwt.NumericDate, error) { return c.Expires.date(), nil }
func (c *Claims) GetNotBefore() (*jwt.NumericDate, error)      { return c.NotBefore.date(), nil }
func (c *Claims) GetIssuedAt() (*jwt.NumericDate, error)       { return c.IssuedAt.date(), nil }
func (c *Claims) GetAudience() (jwt.ClaimStrings, error)       { return c.Audience, nil }
func (c *Claims) GetIssuer() (string, error)                   { return c.Issuer, nil }
func (c *Claims) GetSubject() (string, error)                  { return c.Subject, nil }

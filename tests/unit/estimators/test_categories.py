from __future__ import annotations

import pytest
from pyspark.sql.types import ArrayType, DataType, DecimalType, DoubleType, FloatType, StructField, StructType

from hvdspark.errors import SchemaError
from hvdspark.estimators.categories import check_categories
from hvdspark.estimators.continuous import check_numbers


@pytest.mark.parametrize("kind", [FloatType(), DoubleType(), DecimalType(20, 0), ArrayType(DoubleType())])
def test_numbers_that_became_floats_are_refused_with_a_cure_that_keeps_their_categories(kind: DataType) -> None:
    with pytest.raises(SchemaError, match="cast it to bigint where its numbers are whole: as a string, 1.0 is another"):
        check_categories(StructType([StructField("user", kind)]), ["user"])


def test_a_column_that_is_not_there_is_said_with_the_param_that_names_it() -> None:
    schema = StructType([StructField("age", DoubleType())])
    with pytest.raises(SchemaError, match="column not found: 'agee' .in continuousCols.*did you mean 'age'"):
        check_numbers(schema, ["agee"])
    with pytest.raises(SchemaError, match="column not found: 'user' .in categoricalCols"):
        check_categories(schema, ["user"])
